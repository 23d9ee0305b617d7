"""tools/publish_model.py: slim files that testing, inferencers and transfer accept."""

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, forget_runs, load_tool
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmpretrain.apis import ImageClassificationInferencer
from mmseg.apis import MMSegInferencer

from mmlavit.checkpoints import load_checkpoint
from mmlavit.cli.launch import build_runner
from mmlavit.models import LaViT

CONFIGS = {
    'cls': 'lavit-nano_shapes-cls',
    'det': 'mask-rcnn_lavit-nano_shapes',
    'seg': 'upernet_lavit-nano_shapes',
}
METRICS = {'cls': 'accuracy/top1', 'det': 'coco/bbox_mAP', 'seg': 'mIoU'}
DATA = {'cls': 'classification', 'det': 'coco', 'seg': 'ade20k'}

Run = Callable[..., str]


PUBLISH, TEST = load_tool('publish_model'), load_tool('test')


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty directory, and leave no default scope, logger or variable behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    yield
    forget_runs()


@pytest.fixture(scope='module')
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of two iterations of training with EMA, as mmengine's runner writes them."""
    root = tmp_path_factory.mktemp('trained')
    files = {}
    for task, name in CONFIGS.items():
        cfg = Config.fromfile(ROOT / f'configs/shapes/{name}.py')
        cfg.model.backbone.init_cfg = None
        cfg.work_dir = str(root / task)
        cfg.launcher = 'none'
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
        cfg.custom_hooks = [dict(type='EMAHook', momentum=0.5)]
        cfg.param_scheduler = [dict(type='ConstantLR', factor=0.5, by_epoch=False)]
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
        cfg.log_processor = dict(by_epoch=False)
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
        cfg.train_dataloader.dataset.data_root = str(shapes / DATA[task])
        build_runner(cfg).train()
        files[task] = root / task / 'iter_2.pth'
        forget_runs()
    return files


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Publish a checkpoint and return what was printed."""

    def call(*argv: object) -> str:
        capsys.readouterr()
        PUBLISH.main([str(word) for word in argv])
        return capsys.readouterr().out

    return call


def load(path: Path, weights_only: bool = True) -> dict[str, Any]:
    return torch.load(path, weights_only=weights_only)


def published(folder: str) -> Path:
    (path,) = Path(folder).iterdir()
    return path


@pytest.mark.parametrize('task', CONFIGS)
def test_weights_and_meta_are_kept_and_the_rest_is_dropped(
    task: str, trained: dict[str, Path], run: Run
) -> None:
    """The file holds plain tensors and values, is named by its hash, and training state is gone."""
    output = run(trained[task], '--out', 'out')
    path = published('out')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'iter_2-{digest[:8]}.pth'
    assert str(path) in output
    assert 'dropped: message_hub, optimizer, param_schedulers, ema_state_dict' in output
    before = torch.load(trained[task], weights_only=False)
    after = load(path)
    assert list(after) == ['meta', 'state_dict']
    assert after['meta'] == before['meta']
    assert after['meta']['dataset_meta']['classes'][-1] == 'triangle'
    assert 'LaViT' in after['meta']['cfg']
    assert after['state_dict'].keys() == before['state_dict'].keys()
    for key, value in before['state_dict'].items():
        assert torch.equal(after['state_dict'][key], value), key
    # weights, Adam's two moments and the averaged weights
    assert path.stat().st_size < 0.3 * trained[task].stat().st_size


def test_averaged_weights_are_the_published_ones(trained: dict[str, Path], run: Run) -> None:
    """With EMA, state_dict holds the average, and the trained weights are what is dropped."""
    run(trained['cls'], '--out', 'out')
    before = torch.load(trained['cls'], weights_only=False)
    key = 'head.fc.weight'
    raw = before['ema_state_dict'][f'module.{key}']
    assert not torch.equal(load(published('out'))['state_dict'][key], raw)
    assert torch.equal(load(published('out'))['state_dict'][key], before['state_dict'][key])


def test_the_same_checkpoint_gives_the_same_file(trained: dict[str, Path], run: Run) -> None:
    """Publishing again, under another name or the published file itself, changes no byte."""
    run(trained['cls'], '--out', 'out')
    path = published('out')
    content = path.read_bytes()
    assert 'already there' in run(trained['cls'], '--out', 'out')
    assert 'already there' in run(path)
    other = Path('other_name.pth')
    other.write_bytes(trained['cls'].read_bytes())
    run(other, '--out', 'renamed')
    assert published('renamed').read_bytes() == content
    assert published('renamed').name == path.name.replace('iter_2', 'other_name')


def test_another_file_of_that_name_is_kept(
    trained: dict[str, Path], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is overwritten, and no temporary file stays."""
    run(trained['cls'], '--out', 'out')
    path = published('out')
    path.write_text('mine')
    with pytest.raises(SystemExit) as stop:
        run(trained['cls'], '--out', 'out')
    assert stop.value.code == 2
    assert 'exists and differs' in capsys.readouterr().err
    assert published('out').read_text() == 'mine'


def test_safetensors_hold_the_same(trained: dict[str, Path], run: Run) -> None:
    """The suffix of --out asks for the format; what is JSON in meta comes back."""
    run(trained['det'], '--out', 'out')
    expected = load(published('out'))
    assert 'written: new/x.safetensors' in run(trained['det'], '--out', 'new/x.safetensors')
    found = load_checkpoint('new/x.safetensors')
    assert found['meta'] == json.loads(json.dumps(expected['meta']))
    assert found['state_dict'].keys() == expected['state_dict'].keys()
    for key, value in expected['state_dict'].items():
        assert torch.equal(found['state_dict'][key], value), key
    assert 'already there' in run('new/x.safetensors', '--out', 'new/x.safetensors')


def test_views_do_not_carry_their_storage(run: Run) -> None:
    """A slice of a large tensor is saved as itself."""
    large = torch.randn(1_000_000)
    torch.save({'meta': {}, 'state_dict': {'w': large[:10]}}, 'view.pth')
    run('view.pth', '--out', 'out')
    assert published('out').stat().st_size < 10_000
    assert torch.equal(load(published('out'))['state_dict']['w'], large[:10])


@pytest.mark.parametrize('task', CONFIGS)
def test_testing_accepts_it(
    task: str,
    trained: dict[str, Path],
    run: Run,
    shapes: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """tools/test.py, which compares every key, gives the metrics of the checkpoint."""
    run(trained[task], '--out', 'out')
    config = str(ROOT / f'configs/shapes/{CONFIGS[task]}.py')
    options = [
        f'test_dataloader.dataset.data_root={shapes / DATA[task]}',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ]
    if task == 'det':
        file = shapes / 'coco/annotations/instances_val2017.json'
        # two iterations find nothing that is sure
        options += [f'test_evaluator.ann_file={file}', 'model.test_cfg.rcnn.score_thr=0.0']
    found = []
    for name, path in (('before', trained[task]), ('after', published('out'))):
        metrics = ('--out', f'{name}.json', '--out-item', 'metrics')
        TEST.main([config, str(path), *metrics, '--cfg-options', *options])
        capsys.readouterr()
        forget_runs()
        found.append(json.loads(Path(f'{name}.json').read_text()))
    assert METRICS[task] in found[0]
    assert found[0] == found[1]


@pytest.mark.parametrize('name', ['', 'x.safetensors'])
@pytest.mark.parametrize('task', CONFIGS)
def test_inferencers_accept_it(
    task: str, name: str, trained: dict[str, Path], run: Run, shapes: Path
) -> None:
    """The toolbox's own inferencer predicts, with the classes and weights of the file."""
    run(trained[task], '--out', Path('out', name))
    config, weights = str(ROOT / f'configs/shapes/{CONFIGS[task]}.py'), str(published('out'))
    image = str(min((shapes / 'coco/val2017').iterdir()))
    classes = ('circle', 'square', 'triangle')
    if task == 'cls':
        inferencer = ImageClassificationInferencer(config, weights, device='cpu')
        (prediction,) = inferencer(image)
        assert prediction['pred_class'] in classes
    elif task == 'det':
        # without a config file: the text in meta stands in for it
        inferencer = DetInferencer(weights=weights, device='cpu', show_progress=False)
        assert inferencer(image)['predictions'][0].keys() == {
            'labels',
            'scores',
            'bboxes',
            'masks',
        }
        assert tuple(inferencer.model.dataset_meta['classes']) == classes
    else:
        inferencer = MMSegInferencer(config, weights, device='cpu', show_progress=False)
        assert inferencer(image)['predictions'].shape == (160, 160)
        assert tuple(inferencer.model.dataset_meta['classes']) == ('background', *classes)
    loaded = inferencer.model.state_dict()
    for key, value in load(trained[task], weights_only=False)['state_dict'].items():
        assert torch.equal(loaded[key], value), key


def test_transfer_accepts_it(trained: dict[str, Path], run: Run) -> None:
    """A backbone starts from the published classifier."""
    run(trained['cls'], '--out', 'out')
    checkpoint = str(published('out'))
    init_cfg = dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')
    backbone = LaViT(arch='nano', init_cfg=init_cfg)
    backbone.init_weights()
    state = load(published('out'))['state_dict']
    for key, value in backbone.state_dict().items():
        if not re.match(r'norm[012]\.', key):
            assert torch.equal(value, state[f'backbone.{key}']), key


class Payload:
    """Touches a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path('executed'),)


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('none.pth', None, "checkpoint 'none.pth' does not exist"),
        ('text.pth', b'some text', "checkpoint 'text.pth' is damaged"),
        ('list.pth', [1, 2], "checkpoint 'list.pth' has no state_dict: found a list"),
        ('bare.pth', {'w': torch.ones(1)}, 'has no state_dict: found a dict with the keys w'),
        ('empty.pth', {'state_dict': {}}, "'empty.pth' has no state_dict"),
        ('pickle.pth', pickle.dumps({'state_dict': 1}), "checkpoint 'pickle.pth' cannot be read"),
        ('evil.pth', {'state_dict': {}, 'meta': Payload()}, "'evil.pth' cannot be read safely"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    name: str, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the file and what was found, exit code 2, nothing written or run."""
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif content is not None:
        torch.save(content, name)
    with pytest.raises(SystemExit) as stop:
        PUBLISH.main([name, '--out', 'out'])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
    assert not Path('out').exists()
    assert not Path('executed').exists()
