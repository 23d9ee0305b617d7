"""publish_model.py: slim files that tests, inferencers and transfer accept; safetensors."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, forget_runs, load_tool, metrics_of
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmpretrain.apis import ImageClassificationInferencer
from mmseg.apis import MMSegInferencer

from mmlavit.checkpoints import load_checkpoint
from mmlavit.cli.launch import build_runner
from mmlavit.models import LaViT

pytestmark = pytest.mark.usefixtures('empty_directory')

PUBLISH, TEST = load_tool('publish_model'), load_tool('test')
# config, folder of Shapes
TASKS = {
    'cls': ('lavit-nano_shapes-cls', 'classification'),
    'det': ('mask-rcnn_lavit-nano_shapes', 'coco'),
    'seg': ('upernet_lavit-nano_shapes', 'ade20k'),
}


def config_of(task):
    return str(ROOT / f'configs/shapes/{TASKS[task][0]}.py')


@pytest.fixture(scope='module')
def trained(shapes, tmp_path_factory):
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
def publish(run):
    """Publish a checkpoint and return what was printed."""
    return lambda *argv: run(PUBLISH, *map(str, argv))


def load(path, weights_only=True):
    return torch.load(path, weights_only=weights_only)


def published(folder='out'):
    (path,) = Path(folder).iterdir()
    return path


def assert_same(found, expected):
    torch.testing.assert_close(dict(found), dict(expected), rtol=0, atol=0)


@pytest.mark.parametrize('task', TASKS)
def test_weights_and_meta_are_kept_and_the_rest_is_dropped(task, trained, publish):
    """Plain tensors, with EMA the averaged ones, and values, in a file named by its hash."""
    output = publish(trained[task], '--out', 'out')
    path = published()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'iter_2-{digest[:8]}.pth' and str(path) in output
    assert 'dropped: message_hub, optimizer, param_schedulers, ema_state_dict' in output
    before, after = load(trained[task], weights_only=False), load(path)
    assert list(after) == ['meta', 'state_dict'] and after['meta'] == before['meta']
    assert after['meta']['dataset_meta']['classes'][-1] == 'triangle'
    assert 'LaViT' in after['meta']['cfg']
    assert_same(after['state_dict'], before['state_dict'])
    key = 'backbone.stages.0.embed.proj.weight'
    assert not torch.equal(after['state_dict'][key], before['ema_state_dict'][f'module.{key}'])
    # weights, Adam's two moments and the averaged weights
    assert path.stat().st_size < 0.3 * trained[task].stat().st_size


def test_publishing_again_changes_no_byte_and_overwrites_nothing(trained, publish, fails):
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


def test_safetensors_hold_the_same(trained, publish, fails):
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


@pytest.mark.parametrize(
    ('task', 'name'), [('cls', 'x.safetensors'), ('det', ''), ('seg', ''), ('seg', 'x.safetensors')]
)
def test_inferencers_accept_it(task, name, trained, publish, shapes):
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


def test_testing_and_transfer_accept_it(trained, publish, shapes, run):
    """tools/test.py, which compares every key, and a backbone that starts from it."""
    publish(trained['cls'], '--out', 'out')
    loader = dict(num_workers=0, persistent_workers=False)
    loader['dataset.data_root'] = shapes / 'classification'
    options = [f'test_dataloader.{key}={value}' for key, value in loader.items()]
    output = run(TEST, config_of('cls'), str(published()), '--cfg-options', *options)
    assert 0 <= metrics_of(output)['accuracy/top1'] <= 100
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
        ('text.pth', 'some text', "checkpoint 'text.pth' is damaged"),
        ('list.pth', [1, 2], "checkpoint 'list.pth' has no state_dict: found a list"),
        ('plain.pth', {'w': torch.ones(1)}, 'has no state_dict: found a dict with the keys w'),
        ('empty.pth', {'state_dict': {}}, "'empty.pth' has no state_dict"),
        ('meta.pth', {'meta': ['config']}, "'meta.pth': found a list as meta, expected a dict"),
    ],
)
def test_what_is_no_checkpoint_is_refused(name, content, message, fails):
    """One line that names the file and what was found, and nothing is written."""
    if isinstance(content, str):
        Path(name).write_text(content)
    elif content is not None:
        torch.save(content, name)
    error = fails(PUBLISH, name, '--out', 'out')
    assert message in error and error.count('\n') == 1
    assert not Path('out').exists()
