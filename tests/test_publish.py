"""publish_model.py: slim files that tests, inferencers and transfer accept; safetensors."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Run, forget_runs, load_tool
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmpretrain.apis import ImageClassificationInferencer
from mmseg.apis import MMSegInferencer
from safetensors.torch import save_file

import mmlavit
from mmlavit.checkpoints import load_checkpoint
from mmlavit.cli.launch import build_runner
from mmlavit.errors import UserError
from mmlavit.models import LaViT

pytestmark = pytest.mark.usefixtures('empty_directory')

PUBLISH = load_tool('publish_model')
# config, folder of Shapes
TASKS = {
    'cls': ('lavit-nano_shapes-cls', 'classification'),
    'det': ('mask-rcnn_lavit-nano_shapes', 'coco'),
    'seg': ('upernet_lavit-nano_shapes', 'ade20k'),
}
Publish = Callable[..., str]


def config_of(task: str) -> str:
    return str(ROOT / f'configs/shapes/{TASKS[task][0]}.py')


@pytest.fixture(scope='module')
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of two iterations of training with EMA, as mmengine's runner writes them."""
    root = tmp_path_factory.mktemp('trained')
    for task, (_, folder) in TASKS.items():
        cfg = Config.fromfile(config_of(task))
        cfg.update(runner_type='Runner', work_dir=str(root / task), launcher='none')
        cfg.model.backbone.init_cfg = None
        cfg.default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
        cfg.custom_hooks = [dict(type='EMAHook', momentum=0.5)]
        cfg.param_scheduler = [dict(type='ConstantLR', factor=0.5, by_epoch=False)]
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
        cfg.log_processor = dict(by_epoch=False)
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
        cfg.train_dataloader.dataset.data_root = str(shapes / folder)
        build_runner(cfg).train()
        forget_runs()
    return {task: root / task / 'iter_2.pth' for task in TASKS}


@pytest.fixture
def publish(capsys: pytest.CaptureFixture[str]) -> Publish:
    """Publish a checkpoint and return what was printed."""

    def call(*argv: object) -> str:
        capsys.readouterr()
        PUBLISH.main([str(word) for word in argv])
        return capsys.readouterr().out

    return call


def load(path: Path, weights_only: bool = True) -> dict[str, Any]:
    return torch.load(path, weights_only=weights_only)


def published(folder: str = 'out') -> Path:
    (path,) = Path(folder).iterdir()
    return path


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize('task', TASKS)
def test_weights_and_meta_are_kept_and_the_rest_is_dropped(
    task: str, trained: dict[str, Path], publish: Publish
) -> None:
    """Plain tensors, with EMA the averaged ones, and values, in a file named by its hash."""
    output = publish(trained[task], '--out', 'out')
    path = published()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'iter_2-{digest[:8]}.pth'
    assert str(path) in output
    assert 'dropped: message_hub, optimizer, param_schedulers, ema_state_dict' in output
    before, after = load(trained[task], weights_only=False), load(path)
    assert list(after) == ['meta', 'state_dict']
    assert after['meta'] == before['meta']
    assert after['meta']['dataset_meta']['classes'][-1] == 'triangle'
    assert 'LaViT' in after['meta']['cfg']
    assert_same(after['state_dict'], before['state_dict'])
    key = 'backbone.stages.0.embed.proj.weight'
    assert not torch.equal(after['state_dict'][key], before['ema_state_dict'][f'module.{key}'])
    # weights, Adam's two moments and the averaged weights
    assert path.stat().st_size < 0.3 * trained[task].stat().st_size


def test_publishing_again_changes_no_byte_and_overwrites_nothing(
    trained: dict[str, Path], publish: Publish, fails: Run
) -> None:
    """Under another name, and of the published file itself; another file of that name stays."""
    publish(trained['cls'], '--out', 'out')
    path = published()
    content = path.read_bytes()
    assert 'already there' in publish(trained['cls'], '--out', 'out')
    assert 'already there' in publish(path)
    Path('other_name.pth').write_bytes(trained['cls'].read_bytes())
    publish('other_name.pth', '--out', 'renamed')
    assert published('renamed').read_bytes() == content
    path.write_text('mine')
    assert 'exists and differs' in fails(PUBLISH, str(trained['cls']), '--out', 'out')
    assert published().read_text() == 'mine'


def test_views_do_not_carry_their_storage(publish: Publish) -> None:
    """A slice of a large tensor is saved as itself."""
    large = torch.randn(1_000_000)
    torch.save({'meta': {}, 'state_dict': {'w': large[:10]}}, 'view.pth')
    publish('view.pth', '--out', 'out')
    assert published().stat().st_size < 10_000
    assert torch.equal(load(published())['state_dict']['w'], large[:10])


def test_safetensors_hold_the_same(trained: dict[str, Path], publish: Publish, fails: Run) -> None:
    """The suffix of --out asks for the format; shared memory and arrays are written out."""
    assert 'written: new/x.safetensors' in publish(trained['det'], '--out', 'new/x.safetensors')
    found, expected = load_checkpoint('new/x.safetensors'), load(trained['det'], weights_only=False)
    assert found['meta'] == json.loads(json.dumps(expected['meta']))
    assert_same(found['state_dict'], expected['state_dict'])
    assert 'already there' in publish('new/x.safetensors', '--out', 'new/x.safetensors')

    weight = torch.randn(4, 3).T
    torch.save({'meta': {'x': np.eye(2)}, 'state_dict': {'a': weight, 'b': weight}}, 'tied.pth')
    publish('tied.pth', '--out', 'tied.safetensors')
    found = load_checkpoint('tied.safetensors')
    assert found['meta'] == {'x': [[1, 0], [0, 1]]}
    assert_same(found['state_dict'], {'a': weight, 'b': weight})

    for content in ({'meta': {'x': {1}}, 'state_dict': {'w': weight}}, {'state_dict': {'w': 1}}):
        torch.save(content, 'odd.pth')
        message = fails(PUBLISH, 'odd.pth', '--out', 'odd.safetensors')
        assert 'safetensors holds tensors and JSON only' in message
        assert not Path('odd.safetensors').exists()


def test_damaged_safetensors_are_named() -> None:
    """What is no such file, and what ends too early."""
    path = Path('x.safetensors')
    torch.save({}, path)
    with pytest.raises(UserError, match=r'x.safetensors. is damaged, or .* by safetensors'):
        mmlavit.create_model('lavit_nano', checkpoint_path=str(path))
    save_file({'w': torch.ones(9)}, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r'x.safetensors. cannot be read: SafetensorError'):
        mmlavit.create_model('lavit_nano', checkpoint_path=str(path))


def test_testing_gives_the_same_metrics(
    trained: dict[str, Path], publish: Publish, shapes: Path
) -> None:
    """tools/test.py, which compares every key, takes the file for the checkpoint itself."""
    publish(trained['cls'], '--out', 'out')
    options = [
        f'test_dataloader.dataset.data_root={shapes / "classification"}',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ]
    found = []
    for path in (trained['cls'], published()):
        metrics = ('--out', 'x.json', '--out-item', 'metrics')
        load_tool('test').main([config_of('cls'), str(path), *metrics, '--cfg-options', *options])
        forget_runs()
        found.append(json.loads(Path('x.json').read_text()))
    assert 'accuracy/top1' in found[0]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ('task', 'name'), [('cls', 'x.safetensors'), ('det', ''), ('seg', ''), ('seg', 'x.safetensors')]
)
def test_inferencers_accept_it(
    task: str, name: str, trained: dict[str, Path], publish: Publish, shapes: Path
) -> None:
    """The toolbox's own inferencer predicts, with the classes and weights of the file."""
    publish(trained[task], '--out', Path('out', name))
    config, weights = config_of(task), str(published())
    image = str(min((shapes / 'coco/val2017').iterdir()))
    classes = ('circle', 'square', 'triangle')
    if task == 'cls':
        inferencer = ImageClassificationInferencer(config, weights, device='cpu')
        assert inferencer(image)[0]['pred_class'] in classes
    elif task == 'det':
        # without a config file: the text in meta stands in for it
        inferencer = DetInferencer(weights=weights, device='cpu', show_progress=False)
        assert {'scores', 'bboxes', 'masks'} < inferencer(image)['predictions'][0].keys()
        assert tuple(inferencer.model.dataset_meta['classes']) == classes
    else:
        inferencer = MMSegInferencer(config, weights, device='cpu', show_progress=False)
        assert inferencer(image)['predictions'].shape == (160, 160)
        assert tuple(inferencer.model.dataset_meta['classes']) == ('background', *classes)
    assert_same(inferencer.model.state_dict(), load(trained[task], False)['state_dict'])


def test_transfer_accepts_it(trained: dict[str, Path], publish: Publish) -> None:
    """A backbone starts from the published classifier."""
    publish(trained['cls'], '--out', 'out')
    init_cfg = dict(type='Pretrained', checkpoint=str(published()), prefix='backbone.')
    backbone = LaViT(arch='nano', out_indices=(3,), init_cfg=init_cfg)
    backbone.init_weights()
    state = load(published())['state_dict']
    found = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    assert_same(found, {k: v for k, v in state.items() if k.startswith('backbone.')})


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('none.pth', None, "checkpoint 'none.pth' does not exist"),
        ('text.pth', b'some text', "checkpoint 'text.pth' is damaged"),
        ('list.pth', [1, 2], "checkpoint 'list.pth' has no state_dict: found a list"),
        ('plain.pth', {'w': torch.ones(1)}, 'has no state_dict: found a dict with the keys w'),
        ('empty.pth', {'state_dict': {}}, "'empty.pth' has no state_dict"),
        ('pickle.pth', pickle.dumps({'state_dict': 1}), "checkpoint 'pickle.pth' cannot be read"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    name: str, content: Any, message: str, fails: Run
) -> None:
    """One line that names the file and what was found, and nothing is written."""
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif content is not None:
        torch.save(content, name)
    error = fails(PUBLISH, name, '--out', 'out')
    assert message in error
    assert error.count('\n') == 1
    assert not Path('out').exists()
