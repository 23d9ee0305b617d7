"""tools/predict.py: three toolboxes on folders with good and bad files."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from threading import Thread

import mmcv
import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, forget_runs, load_tool
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.apis import ImageClassificationInferencer
from mmseg.apis import MMSegInferencer
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from mmlavit.apis.images import find_images

SHAPES = ('circle', 'square', 'triangle')
CONFIGS = {
    'cls': ROOT / 'configs/shapes/lavit-nano_shapes-cls.py',
    'det': ROOT / 'configs/shapes/mask-rcnn_lavit-nano_shapes.py',
    'seg': ROOT / 'configs/shapes/upernet_lavit-nano_shapes.py',
}
# Unlike the config's, so that a test sees whose colors are used.
META = {
    'cls': {'classes': SHAPES},
    'det': {'classes': SHAPES, 'palette': [(250, 0, 0), (0, 250, 0), (0, 0, 250)]},
    'seg': {
        'classes': ('background', *SHAPES),
        'palette': [[1, 2, 3], [250, 0, 0], [0, 250, 0], [0, 0, 250]],
    },
}
OPTIONS, PIPELINE = 'images --out out --cfg-options', 'test_dataloader.dataset.pipeline'
PNGS = {'a/same.png', 'b/deep/same.png', 'b/deep/twin.png'}

Run = Callable[..., int]

tool = load_tool('predict')
pytestmark = pytest.mark.usefixtures('empty_directory')


def save_checkpoint(cfg: Config, path: Path, meta: dict) -> None:
    """Write a model with random weights as mmengine does."""
    forget_runs()
    cfg.model.backbone.init_cfg = None
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save({'meta': {'dataset_meta': meta}, 'state_dict': model.state_dict()}, path)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint for each task."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for task, config in CONFIGS.items():
        save_checkpoint(Config.fromfile(config), folder / f'{task}.pth', META[task])
    return {task: str(folder / f'{task}.pth') for task in CONFIGS}


@pytest.fixture
def images(shapes: Path, tmp_path: Path) -> Path:
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
def run(checkpoints: dict[str, str]) -> Run:
    """Run the tool on a task, or on a config with a checkpoint, and return its exit code."""

    def call(task: str, *argv: object) -> int:
        model = [CONFIGS[task], checkpoints[task]] if task in CONFIGS else [task, 'model.pth']
        forget_runs()
        try:
            tool.main(list(map(str, [*model, '--device', 'cpu', *argv])))
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


def results(out: str | Path) -> dict:
    return json.loads(Path(out, 'predictions.json').read_text())


def files_below(folder: str) -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob('*') if p.is_file()}


def test_classification_equals_the_inferencer(
    images: Path, checkpoints: dict[str, str], run: Run
) -> None:
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


def test_detection_is_coco(images: Path, checkpoints: dict[str, str], run: Run) -> None:
    """pycocotools opens the file and reads its annotations as results; boxes are the model's."""
    options = ('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0')
    assert run('det', images, '--out', 'out', *options) == 0
    assert files_below('out/pictures') == PNGS
    coco = COCO('out/predictions.json')
    assert {image['file_name'] for image in coco.dataset['images']} == PNGS
    assert [c['name'] for c in coco.dataset['categories']] == list(SHAPES)
    # a copy, since loadRes changes what it is given
    loaded = coco.loadRes(deepcopy(coco.dataset['annotations']))
    assert len(loaded.anns) == len(coco.anns) > 0

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


def test_segmentation_is_an_indexed_png(
    images: Path, checkpoints: dict[str, str], run: Run
) -> None:
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
        assert mask.mode == 'P'
        assert mask.getpalette()[:12] == sum(META['seg']['palette'], [])
        # a batch sums in another order, which may tip a pixel between two equal classes
        assert np.mean(np.asarray(mask) != inferencer(str(images / name))['predictions']) < 1e-3


def test_segmentation_pictures_show_letters_beyond_ascii(
    images: Path, checkpoints: dict[str, str], run: Run
) -> None:
    """Names that differ in such letters alone give pictures that differ."""
    content = torch.load(checkpoints['seg'])
    pictures = []
    for letter in 'äΔж':
        content['meta']['dataset_meta']['classes'] = (letter,) * 4
        torch.save(content, 'model.pth')
        assert run(str(CONFIGS['seg']), images / 'a', '--out', letter) == 0
        pictures.append(Path(letter, 'pictures/same.png').read_bytes())
    assert len(set(pictures)) == 3


@pytest.mark.parametrize(
    ('loader', 'file', 'channels', 'color'),
    [
        ("'LoadImageFromFile'", 'image.png', 3, (200, 100, 0)),
        ("'LoadImageFromFile', to_float32=True", 'image.png', 3, (200, 100, 0)),
        ("'LoadImageFromFile', color_type='grayscale'", 'image.png', 1, (118, 118, 118)),
        ("'LoadImageFromFile', imdecode_backend='tifffile'", 'image.tif', 5, (200, 100, 0)),
        ("'LoadArray'", 'image.npy', 6, (255, 127, 0)),
    ],
)
def test_the_pipeline_decides_what_an_image_is(
    loader: str,
    file: str,
    channels: int,
    color: tuple[int, int, int],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other loaders, numbers of bands and sizes than Pillow takes; the picture shows its colors."""
    pixels = np.full((224, 224, 6), 50, np.uint8)
    pixels[..., :3] = 200, 100, 0
    Image.fromarray(pixels[..., :3]).save('image.png')
    tifffile.imwrite('image.tif', pixels[..., :5], photometric='minisblack', planarconfig='contig')
    np.save('image.npy', pixels / np.float32(200))
    Path('array_loader.py').write_text(
        'import numpy as np\nfrom mmcv.transforms import TRANSFORMS, BaseTransform\n'
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


def test_a_classifier_of_several_labels_gives_all_above_its_threshold(
    images: Path, run: Run
) -> None:
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


def test_a_pure_python_config_predicts_the_same(
    images: Path, checkpoints: dict[str, str], run: Run
) -> None:
    """Types that are classes, in place of their names."""
    shutil.copy(checkpoints['cls'], 'model.pth')
    assert run(str(ROOT / 'tests/tool_configs/pure_python.py'), images, '--out', 'pure') == 0
    assert run('cls', images, '--out', 'out') == 0
    assert results('pure') == results('out')


def test_bad_images_are_named_and_the_rest_is_predicted(
    images: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, each bad file with its reason, results of the good ones."""
    (images / 'empty.jpg').touch()
    (images / 'text.jpg').write_text('not an image')
    (images / 'cut.png').write_bytes((images / 'a/same.png').read_bytes()[:-200])
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(images / 'cut.jpg')
    os.truncate(images / 'cut.jpg', (images / 'cut.jpg').stat().st_size // 2)
    reasons = {
        'empty.jpg': 'the file is empty',
        'text.jpg': 'not an image of a known format',
        'cut.png': 'truncated',
        'cut.jpg': 'truncated',
    }
    assert run('cls', images, '--out', 'out') == 1
    printed = capfd.readouterr()
    for name, reason in reasons.items():
        (line,) = [line for line in printed.err.splitlines() if f'/{name}: ' in line]
        assert reason in line
    assert '3 of 7 images predicted' in printed.out
    assert '4 images could not be read' in printed.err
    # a.png of a.jpg and of a.png would be the same file, so all pictures have longer names
    assert files_below('out/pictures') == {f'{name}.png' for name in PNGS}
    assert set(results('out')) == PNGS


@pytest.mark.parametrize('task', CONFIGS)
def test_what_was_predicted_before_a_fault_is_kept(
    task: str, images: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    """A picture that cannot be written ends the run with its image's name, and loses nothing."""
    Path('out/pictures/b/deep/twin.png').mkdir(parents=True)
    assert run(task, images, '--out', 'out', '--overwrite', '--batch-size', 2) == 1
    printed = capfd.readouterr()
    assert f'stopped at {images / "b/deep/twin.png"}: ' in printed.err
    assert 'Traceback' not in printed.err
    assert '2 of 3 images predicted' in printed.out
    written = json.dumps(results('out'))
    assert 'a/same.png' in written and 'b/deep/same.png' in written
    assert 'twin.png' not in written


def test_what_was_predicted_before_an_interrupt_is_kept(
    images: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while an image is read: its name, the results so far, and the shell's exit code."""
    pipe = images / 'c.png'
    os.mkfifo(pipe)  # opening it waits for a writer
    last = Path('out/pictures/b/deep/twin.png').absolute()

    def interrupt() -> None:
        for _ in range(600):
            if last.is_file():
                break
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt, daemon=True).start()
    assert run('cls', images, pipe, '--out', 'out') == 130
    printed = capfd.readouterr()
    assert f'interrupted at {pipe}' in printed.err
    assert '3 of 4 images predicted' in printed.out
    assert set(results('out')) == PNGS


def test_existing_results_are_kept(
    images: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
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
def test_classes_come_from_the_config_if_the_checkpoint_has_none(
    task: str, images: Path, checkpoints: dict[str, str], run: Run
) -> None:
    """Not from COCO or Cityscapes."""
    torch.save({'state_dict': torch.load(checkpoints[task])['state_dict']}, 'model.pth')
    assert run(str(CONFIGS[task]), images / 'a', '--out', 'out') == 0
    found = results('out')
    if task == 'det':
        assert [c['name'] for c in found['categories']] == list(SHAPES)
    else:
        palette = Config.fromfile(CONFIGS['seg']).test_dataloader.dataset.metainfo.palette
        assert found['palette'] == [list(color) for color in palette]


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ('none.png --out out', "input 'none.png' does not exist"),
        ('none*.png --out out', "input 'none*.png': no image found"),
        ('empty --out out', "input 'empty': no image found"),
        ('images --out file', "--out 'file' is a file"),
        ('images --out out --batch-size 0', '--batch-size: 0 is below 1'),
        ('images --out out --device cuda:99', "--device 'cuda:99' cannot be used"),
        ('images', 'the following arguments are required: --out'),
        (f'{OPTIONS} model.backbone.archh=nano', "unexpected keyword argument 'archh'"),
        (f'{OPTIONS} model.backbone.arch=huge', "arch='huge': expected one of "),
        (f'{OPTIONS} model.head.num_classes=5', 'head.fc.weight'),
        (f'{OPTIONS} {PIPELINE}.1.type=PackInput', 'PackInput is not in the '),
        (f'{OPTIONS} {PIPELINE}=[]', 'test_dataloader.dataset.pipeline must be set'),
    ],
)
def test_user_errors(
    argv: str, message: str, images: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input ends in one message and exit code 2, with nothing written."""
    Path('empty').mkdir()
    Path('file').write_text('')
    assert run('cls', *argv.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert 'Traceback' not in error
    assert not Path('out').exists()


def test_names_of_files_folders_and_patterns(images: Path, tmp_path: Path) -> None:
    """Names start below the input, of several below what holds them all; none twice."""
    shutil.copy(images / 'a/same.png', images / 'a/UPPER.PNG')
    (images / 'a/notes.txt').write_text('no image')
    (images / 'a/bands.npy').touch()
    (images / 'a/.hidden.png').touch()
    (images / 'b/.ipynb_checkpoints').mkdir()
    shutil.copy(images / 'a/same.png', images / 'b/.ipynb_checkpoints/same-checkpoint.png')
    (images / 'link').symlink_to(images / 'b', target_is_directory=True)
    (tmp_path / 'x[1].png').touch()
    everything = PNGS | {'a/UPPER.PNG'}
    linked = {'link/deep/same.png', 'link/deep/twin.png'}
    hidden = {'same-checkpoint.png'}
    for inputs, expected in (
        (['images'], everything | linked),
        (['images/a', 'images/b', 'images/a/same.png'], everything),
        (['images/b/deep/same.png'], {'same.png'}),
        (['images/*/*.png'], {'a/same.png'}),
        (['images/b/**/*.png'], {'deep/same.png', 'deep/twin.png'}),
        (['images/*/*'], {'a/same.png', 'a/UPPER.PNG'} | PNGS | linked),
        (['images/*/*.npy'], {'a/bands.npy'}),
        # whoever names a hidden folder wants it
        (['images/b/.ipynb_checkpoints'], hidden),
        (['images/b/.ipynb_checkpoints/*'], hidden),
        (['x[1].png'], {'x[1].png'}),
    ):
        assert set(find_images(inputs)) == expected, inputs
    assert set(find_images(['images/a', 'images/b'], [images / 'b'])) == everything
    assert set(find_images(['images'], [images / 'b'])) == {'a/UPPER.PNG', 'a/same.png'}
