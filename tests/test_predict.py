"""tools/predict.py: three toolboxes on folders with good and bad files."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from threading import Thread

import mmcv
import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, forget_runs, load_tool
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.apis import ImageClassificationInferencer
from mmseg.apis import MMSegInferencer
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from mmlavit.apis.images import find_images
from mmlavit.apis.predict import Predictor
from mmlavit.cli.plain_model import load_plain_model
from mmlavit.errors import UserError

SHAPES = ('circle', 'square', 'triangle')
CONFIGS = {
    'cls': ROOT / 'configs/shapes/lavit-nano_shapes-cls.py',
    'det': ROOT / 'configs/shapes/mask-rcnn_lavit-nano_shapes.py',
    'seg': ROOT / 'configs/shapes/upernet_lavit-nano_shapes.py',
}
# Unlike the config's, so that a test sees whose colors are used.
PALETTE = [[1, 2, 3], [250, 0, 0], [0, 250, 0], [0, 0, 250]]
META = {
    'cls': {'classes': SHAPES},
    'det': {'classes': SHAPES, 'palette': PALETTE[1:]},
    'seg': {'classes': ('background', *SHAPES), 'palette': PALETTE},
}
OPTIONS, PIPELINE = 'images --out out --cfg-options', 'test_dataloader.dataset.pipeline'
PNGS = {'a/same.png', 'b/deep/same.png', 'b/deep/twin.png'}

tool = load_tool('predict')
pytestmark = pytest.mark.usefixtures('empty_directory')


def save_checkpoint(cfg, path, meta):
    """Write a model with random weights as mmengine does."""
    forget_runs()
    cfg.model.backbone.init_cfg = None
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save({'meta': {'dataset_meta': meta}, 'state_dict': model.state_dict()}, path)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """A checkpoint for each task."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for task, config in CONFIGS.items():
        save_checkpoint(Config.fromfile(config), folder / f'{task}.pth', META[task])
    return {task: str(folder / f'{task}.pth') for task in CONFIGS}


@pytest.fixture
def images(shapes, tmp_path):
    """Scenes in two folders, two of one name, two of one size."""
    first, second = sorted((shapes / 'coco/val2017').iterdir())
    for name, source, height in zip(
        sorted(PNGS), (first, second, first), (64, 96, 96), strict=True
    ):
        path = tmp_path / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(source).resize((80, height)).save(path)
    return tmp_path / 'images'


@pytest.fixture
def run(checkpoints):
    """Run the tool on a task, or on a config with a checkpoint, and return its exit code."""

    def call(task, *argv):
        model = [CONFIGS[task], checkpoints[task]] if task in CONFIGS else [task, 'model.pth']
        forget_runs()
        try:
            tool.main(list(map(str, [*model, '--device', 'cpu', *argv])))
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


def results(out):
    return json.loads(Path(out, 'predictions.json').read_text())


def files_below(folder):
    return {str(p.relative_to(folder)) for p in Path(folder).rglob('*') if p.is_file()}


def test_classification_equals_the_inferencer(images, checkpoints, run):
    """Label, class and score are the inferencer's, by relative path; a picture for each."""
    assert run('cls', images, '--out', 'out', '--batch-size', 4) == 0
    assert files_below('out/pictures') == PNGS
    inferencer = ImageClassificationInferencer(
        str(CONFIGS['cls']), checkpoints['cls'], 'cpu', classes=SHAPES
    )
    found = results('out')
    assert set(found) == PNGS
    for name, entry in found.items():
        (expected,) = inferencer(str(images / name))
        assert entry['label'] == expected['pred_label']
        assert entry['class'] == expected['pred_class'] == SHAPES[entry['label']]
        assert entry['score'] == pytest.approx(expected['pred_score'], abs=1e-6)
    # a config whose types are classes in place of their names
    shutil.copy(checkpoints['cls'], 'model.pth')
    config = str(ROOT / 'tests/tool_configs/pure_python.py')
    assert run(config, images, '--out', 'pure', '--batch-size', 4) == 0
    assert results('pure') == found


def test_detection_is_coco(images, checkpoints, run):
    """pycocotools opens the file and reads its annotations as results; boxes are the model's."""
    options = ('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0')
    assert run('det', images, '--out', 'out', *options) == 0
    assert files_below('out/pictures') == PNGS
    coco = COCO('out/predictions.json')
    assert {image['file_name'] for image in coco.dataset['images']} == PNGS
    assert [c['name'] for c in coco.dataset['categories']] == list(SHAPES)
    assert len(coco.loadRes(results('out')['annotations']).anns) == len(coco.anns) > 0

    cfg = Config.fromfile(CONFIGS['det'])
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    inferencer = DetInferencer(cfg, checkpoints['det'], 'cpu', show_progress=False)
    for image in coco.dataset['images']:
        (expected,) = inferencer(str(images / image['file_name']))['predictions']
        found = coco.imgToAnns[image['id']]
        corners = np.array([a['bbox'] for a in found])
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(corners, expected['bboxes'], atol=1e-3)
        assert [a['category_id'] - 1 for a in found] == expected['labels']
        for annotation in found:
            assert SHAPES[annotation['category_id'] - 1] == annotation['category_name']
            assert annotation['file_name'] == image['file_name']
            mask = mask_utils.decode(annotation['segmentation'])
            assert mask.shape == (image['height'], image['width'])
            assert annotation['area'] == mask.sum()


def test_segmentation_is_an_indexed_png(images, checkpoints, run):
    """Masks hold the model's class indices, with the colors of the dataset."""
    assert run('seg', images, '--out', 'out', '--batch-size', 4) == 0
    assert files_below('out/pictures') == files_below('out/masks') == PNGS
    found = results('out')
    assert found['classes'] == ['background', *SHAPES]
    assert found['masks'] == {name: f'masks/{name}' for name in PNGS}
    inferencer = MMSegInferencer(
        str(CONFIGS['seg']), checkpoints['seg'], device='cpu', show_progress=False
    )
    for name, path in found['masks'].items():
        mask = Image.open(Path('out', path))
        assert mask.mode == 'P' and mask.getpalette()[:12] == sum(PALETTE, [])
        # a batch sums in another order, which may tip a pixel between two equal classes
        assert np.mean(np.asarray(mask) != inferencer(str(images / name))['predictions']) < 1e-3


def test_segmentation_pictures_show_letters_beyond_ascii(images, checkpoints, run):
    """Names that differ in such letters alone give pictures that differ."""
    content = torch.load(checkpoints['seg'])
    pictures = set()
    for letter in 'äΔж':
        content['meta']['dataset_meta']['classes'] = (letter,) * 4
        torch.save(content, 'model.pth')
        assert run(str(CONFIGS['seg']), images / 'a', '--out', letter) == 0
        pictures.add(Path(letter, 'pictures/same.png').read_bytes())
    assert len(pictures) == 3


@pytest.mark.parametrize(
    ('loader', 'file', 'channels', 'color'),
    [
        ("'LoadImageFromFile', to_float32=True", 'image.png', 3, (200, 100, 0)),
        ("'LoadImageFromFile', color_type='grayscale'", 'image.png', 1, (118, 118, 118)),
        ("'LoadImageFromFile', imdecode_backend='tifffile'", 'image.tif', 5, (200, 100, 0)),
        # behind a transform that loads nothing
        ("'Nothing'), dict(type='LoadArray'", 'image.npy', 6, (255, 127, 0)),
    ],
)
def test_the_pipeline_decides_what_an_image_is(loader, file, channels, color, run, monkeypatch):
    """Other loaders, numbers of bands and sizes than Pillow takes; the picture shows its colors."""
    pixels = np.full((224, 224, 6), 50, np.uint8)
    pixels[..., :3] = 200, 100, 0
    Image.fromarray(pixels[..., :3]).save('image.png')
    tifffile.imwrite('image.tif', pixels[..., :5], photometric='minisblack', planarconfig='contig')
    np.save('image.npy', pixels / np.float32(200))
    Path('array_loader.py').write_text(
        'import numpy as np\nfrom mmcv.transforms import TRANSFORMS, BaseTransform\n'
        '@TRANSFORMS.register_module(force=True)\nclass Nothing(BaseTransform):\n'
        '    def transform(self, results):\n        return results\n'
        '@TRANSFORMS.register_module(force=True)\nclass LoadArray(BaseTransform):\n'
        "    def transform(self, results):\n        image = np.load(results['img_path'])\n"
        '        shape = image.shape[:2]\n'
        '        return {**results, **dict(img=image, img_shape=shape, ori_shape=shape)}\n'
    )
    monkeypatch.syspath_prepend(Path.cwd())
    Path('config.py').write_text(
        f'_base_ = {str(CONFIGS["cls"])!r}\n'
        "custom_imports = dict(imports=['array_loader'])\n"
        f'model = dict(backbone=dict(in_channels={channels}),\n'
        '    data_preprocessor=dict(mean=None, std=None))\n'
        'test_dataloader = dict(dataset=dict(pipeline=\n'
        f"    [dict(type={loader}), dict(type='PackInputs')]))\n"
    )
    save_checkpoint(Config.fromfile('config.py'), Path('model.pth'), META['cls'])
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    assert run('config.py', file, '--out', 'out') == 0
    assert set(results('out')) == {file}
    picture = mmcv.imread('out/pictures/image.png', channel_order='rgb')
    assert tuple(picture[220, 220]) == color


def test_a_classifier_of_several_labels_gives_all_above_its_threshold(images, run):
    """Labels, classes and scores are lists, which may be empty."""
    Path('config.py').write_text(
        f'_base_ = {str(CONFIGS["cls"])!r}\nmodel = dict(head=dict(_delete_=True,\n'
        "    type='MultiLabelLinearClsHead', num_classes=3, in_channels=256, thr=0.5))\n"
    )
    save_checkpoint(Config.fromfile('config.py'), Path('model.pth'), META['cls'])
    content = torch.load('model.pth')
    content['state_dict']['head.fc.weight'].zero_()
    for bias, labels in (([1.0, -1.0, 2.0], [0, 2]), ([-1.0] * 3, [])):
        content['state_dict']['head.fc.bias'] = torch.tensor(bias)
        torch.save(content, 'model.pth')
        assert run('config.py', images, '--out', 'out', '--overwrite') == 0
        for entry in results('out').values():
            assert entry['labels'] == labels
            assert entry['classes'] == [SHAPES[label] for label in labels]
            scores = torch.tensor(bias).sigmoid()[labels].tolist()
            assert entry['scores'] == pytest.approx(scores)


def test_bad_images_are_named_and_the_rest_is_predicted(images, run, capfd):
    """Exit code 1, each bad file with its reason, results of the good ones."""
    (images / 'cut.jpg').touch()
    (images / 'text.jpg').write_text('not an image')
    (images / 'cut.png').write_bytes((images / 'a/same.png').read_bytes()[:-200])
    assert run('cls', images, '--out', 'out') == 1
    out, err = capfd.readouterr()
    for name, reason in (
        ('cut.jpg', 'the file is empty'),
        ('text.jpg', 'not an image of a known format'),
        ('cut.png', 'image file is truncated'),
    ):
        assert f'{images / name}: {reason}' in err.splitlines()
    assert '3 of 6 images predicted' in out and '3 images could not be read' in err
    # a.png of a.jpg and of a.png would be the same file, so all pictures have longer names
    assert files_below('out/pictures') == {f'{name}.png' for name in PNGS}
    assert set(results('out')) == PNGS


@pytest.mark.parametrize('task', CONFIGS)
def test_what_was_predicted_before_a_fault_is_kept(task, images, run, capfd):
    """A picture that cannot be written ends the run with its image's name, and loses nothing."""
    Path('out/pictures/b/deep/twin.png').mkdir(parents=True)
    assert run(task, images, '--out', 'out', '--overwrite', '--batch-size', 2) == 1
    out, err = capfd.readouterr()
    assert f'stopped at {images / "b/deep/twin.png"}: ' in err and 'Traceback' not in err
    assert '2 of 3 images predicted' in out
    written = json.dumps(results('out'))
    assert 'a/same.png' in written and 'b/deep/same.png' in written
    assert 'twin.png' not in written


def test_what_was_predicted_before_an_interrupt_is_kept(images, run, capfd):
    """Ctrl-C while an image is read: its name, the results so far, and the shell's exit code."""
    pipe = images / 'c.png'
    os.mkfifo(pipe)  # opening it waits for a writer
    last = Path('out/pictures/b/deep/twin.png').absolute()

    def interrupt():
        for _ in range(600):
            if last.is_file():
                break
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt, daemon=True).start()
    assert run('cls', images, pipe, '--out', 'out') == 130
    out, err = capfd.readouterr()
    assert f'interrupted at {pipe}' in err and '3 of 4 images predicted' in out
    assert set(results('out')) == PNGS


def test_existing_results_are_kept(images, run, capsys):
    """A folder that is not empty needs --overwrite, which does not predict its own pictures."""
    out = images / 'out'
    out.mkdir()
    (out / 'predictions.json').write_text('mine')
    assert run('cls', images, '--out', out) == 2
    assert 'is not empty; --overwrite replaces' in capsys.readouterr().err
    assert (out / 'predictions.json').read_text() == 'mine'
    for _ in range(2):
        assert run('cls', images, '--out', out, '--overwrite') == 0
        assert set(results(out)) == PNGS


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_classes_come_from_the_config_if_the_checkpoint_has_none(task, images, checkpoints, run):
    """Not from COCO or Cityscapes."""
    torch.save({'state_dict': torch.load(checkpoints[task])['state_dict']}, 'model.pth')
    assert run(str(CONFIGS[task]), images / 'a', '--out', 'out') == 0
    found = results('out')
    if task == 'det':
        assert [c['name'] for c in found['categories']] == list(SHAPES)
    else:
        palette = Config.fromfile(CONFIGS['seg']).test_dataloader.dataset.metainfo.palette
        assert found['palette'] == [list(color) for color in palette]


def test_a_model_without_boxes_is_named(checkpoints):
    """Such as a panoptic one, whose samples have segments."""
    cfg = Config.fromfile(CONFIGS['det'])
    predictor = Predictor(cfg, *load_plain_model(cfg, checkpoints['det']), torch.device('cpu'))
    with pytest.raises(UserError, match='predicts no boxes'):
        predictor.save(np.zeros((9, 9, 3), np.uint8), DetDataSample(), Path('out'), 'x.png', 0.3)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ('none.png --out out', "input 'none.png' does not exist"),
        ('none*.png --out out', "input 'none*.png': no image found"),
        ('empty --out out', "input 'empty': no image found"),
        ('images --out file', "--out 'file' is a file"),
        ('images --out file/out', "--out 'file/out' cannot be written to"),
        ('images --out out --batch-size 0', '--batch-size: 0 is below 1'),
        ('images --out out --device cuda:99', "--device 'cuda:99' cannot be used"),
        (f'{OPTIONS} model.backbone.archh=nano', "unexpected keyword argument 'archh'"),
        (f'{OPTIONS} model.head.num_classes=5', 'head.fc.weight'),
        (f'{OPTIONS} {PIPELINE}.1.type=PackInput', 'PackInput is not in the '),
        (f'{OPTIONS} {PIPELINE}=[]', 'test_dataloader.dataset.pipeline must be set'),
    ],
)
def test_user_errors(argv, message, images, run, capsys):
    """Bad input ends in one message and exit code 2, with nothing written."""
    Path('empty').mkdir()
    Path('file').write_text('')
    assert run('cls', *argv.split()) == 2
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error
    assert not Path('out').exists()


def test_names_of_files_folders_and_patterns(images, tmp_path):
    """Names start below the input, of several below what holds them all; none twice."""
    hidden = images / 'b/.ipynb_checkpoints'
    hidden.mkdir()
    for path in (images / 'a/UPPER.PNG', hidden / 'x.png', tmp_path / 'x[1].png'):
        path.touch()
    for name in ('a/notes.txt', 'a/bands.npy', 'a/.hidden.png'):
        (images / name).touch()
    (images / 'link').symlink_to(images / 'b', target_is_directory=True)
    everything = PNGS | {'a/UPPER.PNG'}
    linked = {'link/deep/same.png', 'link/deep/twin.png'}
    for inputs, expected in (
        (['images'], everything | linked),
        (['images/a', 'images/b', 'images/a/same.png'], everything),
        (['images/b/deep/same.png'], {'same.png'}),
        (['images/*/*.png'], {'a/same.png'}),
        (['images/b/**/*.png'], {'deep/same.png', 'deep/twin.png'}),
        (['images/*/*'], everything | linked),
        (['images/*/*.npy'], {'a/bands.npy'}),
        # whoever names a hidden folder wants it
        (['images/b/.ipynb_checkpoints'], {'x.png'}),
        (['images/b/.ipynb_checkpoints/*'], {'x.png'}),
        (['x[1].png'], {'x[1].png'}),
    ):
        assert set(find_images(inputs)) == expected, inputs
    assert set(find_images(['images/a', 'images/b'], [images / 'b'])) == everything
    assert set(find_images(['images'], [images / 'b'])) == {'a/UPPER.PNG', 'a/same.png'}
