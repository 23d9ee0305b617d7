"""tools/predict.py: the toolboxes' inferencers on folders with good and bad files."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
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

from mmlavit.checks.image_files import find_images, read_image
from mmlavit.errors import UserError

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

Run = Callable[..., int]


PREDICT = load_tool('predict')


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty directory, and leave no default scope, logger or variable behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    yield
    forget_runs()


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint for each task, as mmengine writes it, with random weights."""
    folder = tmp_path_factory.mktemp('checkpoints')
    paths = {}
    for task, config in CONFIGS.items():
        cfg = Config.fromfile(config)
        cfg.model.backbone.init_cfg = None
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        paths[task] = str(folder / f'{task}.pth')
        meta = {'dataset_meta': META[task], 'epoch': 1}
        torch.save({'meta': meta, 'state_dict': model.state_dict()}, paths[task])
    return paths


@pytest.fixture
def images(shapes: Path, tmp_path: Path) -> Path:
    """Scenes in two folders, two of one name, two of one size."""
    first, second = sorted((shapes / 'coco/val2017').iterdir())
    for name, source, height in (
        ('a/same.png', first, 64),
        ('b/deep/same.png', second, 96),
        ('b/deep/twin.png', first, 96),
    ):
        path = tmp_path / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(source).resize((80, height)).save(path)
    return tmp_path / 'images'


@pytest.fixture
def run() -> Run:
    """Run the tool on a task in this process and return its exit code."""

    def call(task: str, checkpoint: str, *argv: object) -> int:
        words = [str(CONFIGS[task]), checkpoint, *map(str, argv), '--device', 'cpu']
        try:
            PREDICT.main(words)
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


def results(out: str) -> dict:
    return json.loads(Path(out, 'predictions.json').read_text())


def files_below(folder: str) -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob('*') if p.is_file()}


PNGS = {'a/same.png', 'b/deep/same.png', 'b/deep/twin.png'}


def test_classification_equals_the_inferencer(
    images: Path, checkpoints: dict[str, str], run: Run
) -> None:
    """Label, class and score are the inferencer's, by relative path; a picture for each."""
    assert run('cls', checkpoints['cls'], images, '--out', 'out', '--batch-size', 4) == 0
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
    assert run('det', checkpoints['det'], images, '--out', 'out', *options) == 0
    assert files_below('out/pictures') == PNGS
    coco = COCO('out/predictions.json')
    assert {image['file_name'] for image in coco.dataset['images']} == PNGS
    assert [c['name'] for c in coco.dataset['categories']] == list(SHAPES)
    truth = COCO()
    truth.dataset = {**coco.dataset, 'annotations': []}
    truth.createIndex()
    # a copy, since loadRes changes what it is given
    loaded = truth.loadRes(deepcopy(coco.dataset['annotations']))
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
        assert all(SHAPES[a['category_id'] - 1] == a['category_name'] for a in found)
        for annotation in found:
            mask = mask_utils.decode(annotation['segmentation'])
            assert mask.shape == (image['height'], image['width'])
            assert annotation['area'] == mask.sum()


def test_segmentation_is_an_indexed_png(
    images: Path, checkpoints: dict[str, str], run: Run
) -> None:
    """Masks hold the model's class indices, with the colors of the dataset."""
    assert run('seg', checkpoints['seg'], images, '--out', 'out') == 0
    assert run('seg', checkpoints['seg'], images, '--out', 'batched', '--batch-size', 4) == 0
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
        np.testing.assert_array_equal(mask, inferencer(str(images / name))['predictions'])
        # a batch sums in another order, which may tip a pixel between two equal classes
        batched = np.asarray(Image.open(Path('batched', path)))
        assert np.mean(batched != np.asarray(mask)) < 1e-3


def spoil(folder: Path) -> set[str]:
    """Put files that are no images beside the images; return their names."""
    good = next(folder.rglob('same.png'))
    (folder / 'empty.jpg').touch()
    (folder / 'text.jpg').write_text('not an image')
    (folder / 'cut.png').write_bytes(good.read_bytes()[:-200])
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / 'cut.jpg')
    os.truncate(folder / 'cut.jpg', (folder / 'cut.jpg').stat().st_size // 2)
    return {'empty.jpg', 'text.jpg', 'cut.png', 'cut.jpg'}


@pytest.mark.parametrize('task', CONFIGS)
def test_bad_images_are_named_and_the_rest_is_predicted(
    task: str,
    images: Path,
    checkpoints: dict[str, str],
    run: Run,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1, each bad file with its reason, results of the good ones."""
    bad = spoil(images)
    assert run(task, checkpoints[task], images, '--out', 'out') == 1
    printed = capfd.readouterr()
    for name in bad:
        (line,) = [line for line in printed.err.splitlines() if f'/{name}: ' in line]
        assert len(line.split(': ')[1]) > 3
    assert '3 of 7 images predicted' in printed.out
    assert '4 images could not be read' in printed.err
    # a.png of a.jpg and of a.png would be the same file, so all pictures have longer names
    assert files_below('out/pictures') == {f'{name}.png' for name in PNGS}
    assert not any(name in json.dumps(results('out')) for name in bad)


@pytest.mark.parametrize('task', CONFIGS)
def test_what_was_predicted_before_a_fault_is_kept(
    task: str,
    images: Path,
    checkpoints: dict[str, str],
    run: Run,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A picture that cannot be written ends the run with its image's name, and loses nothing."""
    Path('out/pictures/b/deep/twin.png').mkdir(parents=True)
    argv = (images, '--out', 'out', '--overwrite')
    assert run(task, checkpoints[task], *argv, '--batch-size', 2) == 1
    printed = capfd.readouterr()
    (line,) = [line for line in printed.err.splitlines() if 'stopped at' in line]
    assert f'stopped at {images / "b/deep/twin.png"}: ' in line
    assert 'Traceback' not in printed.err
    assert '2 of 3 images predicted' in printed.out
    assert files_below('out/pictures') == PNGS - {'b/deep/twin.png'}
    written = json.dumps(results('out'))
    assert 'a/same.png' in written and 'b/deep/same.png' in written
    assert 'twin.png' not in written


def test_what_was_predicted_before_an_interrupt_is_kept(
    images: Path, checkpoints: dict[str, str], run: Run, capfd: pytest.CaptureFixture[str]
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
    assert run('cls', checkpoints['cls'], images, pipe, '--out', 'out') == 130
    printed = capfd.readouterr()
    assert f'interrupted at {pipe}' in printed.err
    assert '3 of 4 images predicted' in printed.out
    assert set(results('out')) == PNGS


def test_existing_results_are_kept(
    images: Path,
    checkpoints: dict[str, str],
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder that is not empty needs --overwrite, which does not predict its own pictures."""
    out = images / 'out'
    out.mkdir()
    (out / 'predictions.json').write_text('mine')
    argv = ('cls', checkpoints['cls'], images, '--out', out)
    assert run(*argv) == 2
    assert 'is not empty; --overwrite replaces' in capsys.readouterr().err
    assert (out / 'predictions.json').read_text() == 'mine'
    for _ in range(2):
        assert run(*argv, '--overwrite') == 0
        assert set(results(str(out))) == PNGS


def test_classes_come_from_the_config_if_the_checkpoint_has_none(
    images: Path, checkpoints: dict[str, str], run: Run
) -> None:
    """Not from COCO or Cityscapes, which the inferencers fall back to."""
    for task in ('det', 'seg'):
        state = torch.load(checkpoints[task])['state_dict']
        torch.save({'state_dict': state}, f'{task}.pth')
        assert run(task, f'{task}.pth', images / 'a', '--out', task) == 0
    assert [c['name'] for c in results('det')['categories']] == list(SHAPES)
    palette = Config.fromfile(CONFIGS['seg']).test_dataloader.dataset.metainfo.palette
    assert results('seg')['palette'] == [list(color) for color in palette]


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (('none.png', '--out', 'out'), "input 'none.png' does not exist"),
        (('none*.png', '--out', 'out'), "input 'none*.png': no image found"),
        (('empty', '--out', 'out'), "input 'empty': no image found"),
        (('images', '--out', 'file'), "--out 'file' is a file"),
        (('images', '--out', 'out', '--batch-size', '0'), '--batch-size: 0 is below 1'),
        (('images',), 'the following arguments are required: --out'),
        (
            ('images', '--out', 'out', '--cfg-options', 'model.backbone.arch=huge'),
            "model.backbone: LaViT: arch='huge': expected one of ",
        ),
        (
            ('images', '--out', 'out', '--cfg-options', 'model.backbone.type=LaVit'),
            "model.backbone: type 'LaVit' is unknown",
        ),
        (
            (
                *('images', '--out', 'out', '--cfg-options'),
                'test_dataloader.dataset.pipeline.1.type=PackInput',
            ),
            "test_dataloader.dataset.pipeline.1: type 'PackInput' is unknown; did you mean",
        ),
    ],
)
def test_user_errors(
    argv: tuple[str, ...],
    message: str,
    images: Path,
    checkpoints: dict[str, str],
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bad input ends in one line and exit code 2, with nothing written."""
    Path('empty').mkdir()
    Path('file').write_text('')
    assert run('cls', checkpoints['cls'], *argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
    assert not Path('out').exists()


def test_wrong_checkpoint_or_device(
    images: Path,
    checkpoints: dict[str, str],
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The checkpoint of another model is refused with the keys that differ, before predicting."""
    assert run('seg', checkpoints['cls'], images, '--out', 'out') == 2
    error = capsys.readouterr().err
    assert f'{checkpoints["cls"]} does not belong to this EncoderDecoder' in error
    assert 'missing from the file: ' in error and 'decode_head.' in error
    with pytest.raises(UserError, match="--device 'cuda:99' cannot be used"):
        PREDICT.check_device('cuda:99')
    assert not Path('out').exists()


def test_names_of_files_folders_and_patterns(images: Path, tmp_path: Path) -> None:
    """Names start below the input, of several below what holds them all; none twice."""
    shutil.copy(images / 'a/same.png', images / 'a/UPPER.PNG')
    (images / 'a/notes.txt').write_text('no image')
    (images / 'a/.hidden.png').touch()
    (images / 'b/.ipynb_checkpoints').mkdir()
    shutil.copy(images / 'a/same.png', images / 'b/.ipynb_checkpoints/same-checkpoint.png')
    (images / 'link').symlink_to(images / 'b', target_is_directory=True)
    linked = {'link/deep/same.png', 'link/deep/twin.png'}
    everything = PNGS | {'a/UPPER.PNG'}
    assert set(find_images(['images'])) == everything | linked
    assert set(find_images(['images/a', 'images/b', 'images/a/same.png'])) == everything
    assert set(find_images(['images/b/deep/same.png'])) == {'same.png'}
    assert set(find_images(['images/*/*.png'])) == {'a/same.png'}
    assert set(find_images(['images/b/**/*.png'])) == {'deep/same.png', 'deep/twin.png'}
    # whoever names a hidden folder wants it
    hidden = {'same-checkpoint.png'}
    assert set(find_images(['images/b/.ipynb_checkpoints'])) == hidden
    assert set(find_images(['images/b/.ipynb_checkpoints/*'])) == hidden
    ignored = [images / 'b']
    assert set(find_images(['images/a', 'images/b'], ignored)) == everything
    assert set(find_images(['images'], ignored)) == {'a/UPPER.PNG', 'a/same.png'}
    (tmp_path / 'x[1].png').write_bytes((images / 'a/same.png').read_bytes())
    assert find_images(['x[1].png']) == {'x[1].png': tmp_path / 'x[1].png'}


def test_pixels_are_rgb(tmp_path: Path) -> None:
    """What is painted on has the colors of the file."""
    Image.new('RGB', (4, 3), (255, 128, 0)).save('orange.png')
    assert (read_image(Path('orange.png')) == (255, 128, 0)).all()
    assert read_image(Path('orange.png')).shape == (3, 4, 3)
