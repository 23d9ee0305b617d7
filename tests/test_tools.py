"""tools/train.py, tools/test.py and their launchers, with the three toolboxes on real files."""

import importlib.util
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseTTAModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn

from mmlavit.datasets.shapes import ShapesSpec, write_shapes
from mmlavit.engine import BFloat16OptimWrapper, PortableRunner, StrictLoadHook, UserError
from mmlavit.engine.overrides import merge_overrides
from mmlavit.models import LessAttention

TOOLS = Path(__file__).parents[1] / 'tools'
TRAIN_IMAGES, TEST_IMAGES = 12, 6
TRAIN_SCENES, TEST_SCENES = 4, 2

CLS = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=3, mean=[127.0] * 3, std=[60.0] * 3),
    backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8,
                  norm_cfg=dict(type='SyncBN')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=64))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=3, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root='shapes/classification', data_prefix='train',
                 pipeline=test_pipeline))
val_dataloader = dict(
    batch_size=3, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root='shapes/classification', data_prefix='val',
                 pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=1)
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02))
auto_scale_lr = dict(base_batch_size=12)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
"""

FLIPPED_CLS = """
_base_ = 'cls.py'
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=1.0), dict(type='PackInputs')]))
"""

DET = """
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', 'mmdet::_base_/default_runtime.py']
model = dict(
    backbone=dict(depth=18, base_channels=8, stem_channels=8, frozen_stages=-1, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.0))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
dataset = dict(type='CocoDataset', data_root='shapes/coco/', pipeline=pipeline,
               metainfo=dict(classes=('circle', 'square', 'triangle')))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='annotations/instances_train2017.json',
                 data_prefix=dict(img='train2017/'), **dataset))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='annotations/instances_val2017.json', test_mode=True,
                 data_prefix=dict(img='val2017/'), **dataset))
test_evaluator = dict(type='CocoMetric', metric='bbox',
                      ann_file='shapes/coco/annotations/instances_val2017.json')
train_cfg = dict(by_epoch=True, max_epochs=1)
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001))
"""

SEG = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64), seg_pad_val=255,
                           mean=[127.0] * 3, std=[60.0] * 3),
    backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
    decode_head=dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1,
                     num_classes=4, norm_cfg=dict(type='SyncBN')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
dataset = dict(
    type='BaseSegDataset', data_root='shapes/ade20k', img_suffix='.png', reduce_zero_label=False,
    metainfo=dict(classes=('background', 'circle', 'square', 'triangle'),
                  palette=[[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]]),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
              dict(type='PackSegInputs')])
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(data_prefix=dict(img_path='images/training',
                                  seg_map_path='annotations/training'), **dataset))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(data_prefix=dict(img_path='images/validation',
                                  seg_map_path='annotations/validation'), **dataset))
test_evaluator = dict(type='IoUMetric')
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
log_processor = dict(by_epoch=False)
"""

Run = Callable[..., str]


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'tools_{name}', TOOLS / f'{name}.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TRAIN, TEST = load_tool('train'), load_tool('test')


@pytest.fixture(scope='module')
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory outside the repository, with a space in its name, data and configs."""
    root = tmp_path_factory.mktemp('work space')
    spec = ShapesSpec(
        num_classification=(TRAIN_IMAGES, TEST_IMAGES),
        num_scenes=(TRAIN_SCENES, TEST_SCENES),
        classification_size=32,
        scene_size=64,
    )
    write_shapes(root / 'shapes', spec)
    for name, text in (('cls', CLS), ('cls_flipped', FLIPPED_CLS), ('det', DET), ('seg', SEG)):
        (root / f'{name}.py').write_text(text)
    return root


@pytest.fixture(autouse=True)
def isolated(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in the workspace, and leave no default scope, logger or variable behind."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv('LOCAL_RANK', '0')
    yield
    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer):
        manager._instance_dict.clear()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a tool in this process and return what it printed."""

    def call(tool: ModuleType, *argv: str) -> str:
        tool.main(argv)
        return capsys.readouterr().out

    return call


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a tool that must stop with exit code 2 and no traceback, and return its message."""

    def call(tool: ModuleType, *argv: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            tool.main(argv)
        assert exit_info.value.code == 2
        message = capsys.readouterr().err
        assert 'Traceback' not in message
        return message

    return call


@pytest.fixture(scope='module')
def checkpoint(workspace: Path) -> str:
    """A checkpoint of cls.py, random weights and batch norm statistics of the test data."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        cfg = Config.fromfile('cls.py')
        cfg.work_dir = 'work_dirs/checkpoint'
        model = PortableRunner.from_cfg(cfg).model
    path = workspace / 'cls.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return str(path)


def metrics_of(output: str) -> dict[str, float]:
    path = output.rpartition('Metrics: ')[2].strip()
    return json.loads(Path(path).read_text())


def predictions(path: str) -> list[dict]:
    return pickle.loads(Path(path).read_bytes())


@pytest.mark.parametrize(
    ('config', 'result', 'out', 'num_images', 'metric'),
    [
        ('cls.py', 'epoch_1.pth', 'out/cls.pkl', TEST_IMAGES, 'accuracy/top1'),
        ('det.py', 'epoch_1.pth', 'out/det.pickle', TEST_SCENES, 'coco/bbox_mAP'),
        ('seg.py', 'iter_2.pth', 'out/seg', TEST_SCENES, 'mIoU'),
    ],
)
def test_one_pair_of_tools_serves_three_toolboxes(
    config: str, result: str, out: str, num_images: int, metric: str, run: Run
) -> None:
    """Train, then test with predictions and painted images; the default work dir is upstream's."""
    run(TRAIN, config)
    work_dir = Path('work_dirs') / Path(config).stem
    show_dir = Path('shown', config)
    output = run(TEST, config, str(work_dir / result), '--out', out, '--show-dir', str(show_dir))
    assert metric in metrics_of(output)
    assert f'{metric}: ' in output
    assert len(list(show_dir.rglob('*.png'))) == num_images
    if config == 'seg.py':
        names = {path.name for path in Path('shapes/ade20k/images/validation').iterdir()}
        assert {path.name for path in Path(out).iterdir()} == names
    else:
        assert len(predictions(out)) == num_images


def test_training_options_and_resume(run: Run) -> None:
    """The options reach the run, and --resume goes on with the epoch after the checkpoint's."""
    argv = ('cls.py', '--work-dir', 'work dirs/options', '--amp')
    output = run(TRAIN, *argv, '--auto-scale-lr')
    # 3 images a batch against a base of 12: a quarter of 0.02
    assert 'Epoch(train) [1][4/4]  lr: 5.0000e-03' in output
    assert 'accuracy/top1: ' in output
    if get_device() == 'cpu':
        assert 'Autocast runs in bfloat16, without loss scaling.' in output

    output = run(
        TRAIN, *argv, '--resume', '--no-validate', '--cfg-options', 'train_cfg.max_epochs=2'
    )
    assert 'resumed epoch: 1, iter: 4' in output
    assert 'Epoch(train) [1]' not in output
    assert 'Epoch(train) [2][4/4]' in output
    assert 'Epoch(val)' not in output
    meta = torch.load('work dirs/options/epoch_2.pth', weights_only=False)['meta']
    assert (meta['epoch'], meta['iter']) == (2, 8)


def test_resume_without_a_checkpoint_keeps_load_from(checkpoint: str) -> None:
    """--resume on the first launch of a job must not drop the weights that the config loads."""
    cfg = Config(dict(work_dir='work_dirs/none', load_from=checkpoint))
    TRAIN.resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (False, checkpoint)


def test_tta_averages_the_flipped_images(checkpoint: str, run: Run) -> None:
    """mmpretrain's default augmentation is the mean over an image and its mirror image."""
    scores = {}
    for name, argv in (
        ('plain', ('cls.py', checkpoint)),
        ('flipped', ('cls_flipped.py', checkpoint)),
        ('tta', ('cls.py', checkpoint, '--tta')),
    ):
        run(TEST, *argv, '--out', f'out/{name}.pkl', '--work-dir', f'work_dirs/{name}')
        scores[name] = torch.stack([p['pred_score'] for p in predictions(f'out/{name}.pkl')])
    assert not torch.allclose(scores['plain'], scores['flipped'], atol=1e-6)
    mean = (scores['plain'] + scores['flipped']) / 2
    torch.testing.assert_close(scores['tta'], mean)


def test_default_tta_of_mmdet_flips_boxes_back() -> None:
    """The default pipeline keeps the keys that DetTTAModel needs to undo a flip."""
    cfg = Config.fromfile('det.py')
    TEST.augment(cfg)
    assert (cfg.model.type, cfg.model.module.type) == ('DetTTAModel', 'RetinaNet')
    flips, (pack,) = cfg.test_dataloader.dataset.pipeline[-1].transforms
    assert [flip.prob for flip in flips] == [1.0, 0.0]
    assert pack == dict(type='PackDetInputs')
    cfg = Config.fromfile('det.py')
    cfg.model.roi_head = dict(mask_head=dict(type='FCNMaskHead'))
    with pytest.raises(UserError, match='boxes only'):
        TEST.augment(cfg)


def test_metrics_can_be_the_output(checkpoint: str, run: Run) -> None:
    """--out-item metrics writes the metrics, and nothing else, to --out."""
    argv = ('--out', 'out/metrics.json', '--out-item', 'metrics', '--amp')
    output = run(TEST, 'cls.py', checkpoint, *argv)
    written = json.loads(Path('out/metrics.json').read_text())
    assert list(written) == ['accuracy/top1']
    assert written.items() <= metrics_of(output).items()


def test_wrong_checkpoint_is_refused(checkpoint: str, fails: Run) -> None:
    """A checkpoint of another depth stops before any image is read, listing keys and counts."""
    message = fails(TEST, 'cls.py', checkpoint, '--cfg-options', 'model.backbone.depth=34')
    assert f'{checkpoint} does not belong to this ImageClassifier' in message
    assert 'missing from the file: 80: backbone.layer1.2.conv1.weight, ' in message
    assert ' and 70 more' in message


class _TTAModel(BaseTTAModel):
    def merge_preds(self, data_samples_list: list) -> list:
        return data_samples_list


def load_strictly(model: nn.Module, checkpoint: object) -> None:
    torch.save(checkpoint, 'some.pth')
    runner = Runner(model, 'work_dirs/strict', load_from='some.pth', log_level='WARNING')
    runner.register_hook(StrictLoadHook())
    runner.load_or_resume()


@pytest.mark.parametrize('wrap', ['none', 'tta', 'ddp'])
def test_strict_load_accepts_what_fits(wrap: str) -> None:
    """Other window sizes, wrappers' prefixes and bookkeeping buffers are no mismatch."""
    state = LessAttention(8, 2, 9).state_dict()
    state['data_preprocessor.mean'] = torch.zeros(3, 1, 1)
    state['proj.num_batches_tracked'] = torch.tensor(1)
    state['proj.bias'].fill_(3.0)
    model = LessAttention(8, 2, 4)
    model.test_step = None
    load_strictly(
        _TTAModel(model) if wrap == 'tta' else model,
        {f'module.{key}': value for key, value in state.items()}
        if wrap == 'ddp'
        else {'state_dict': state, 'ema_state_dict': {}},
    )
    assert (model.proj.bias == 3.0).all()


def test_strict_load_lists_what_does_not_fit() -> None:
    """Missing, unexpected and mismatched keys are listed with their counts; nothing is loaded."""
    state = {'weight': torch.ones(2, 3), 'head.weight': torch.ones(1)}
    model = nn.Linear(4, 2)
    before = model.weight.detach().clone()
    with pytest.raises(UserError) as error:
        load_strictly(model, {'state_dict': state})
    assert str(error.value).splitlines() == [
        'some.pth does not belong to this Linear:',
        '  missing from the file: 1: bias',
        '  not in the model: 1: head.weight',
        '  of another shape: 1: weight (2, 3) in the file, (2, 4) in the model',
    ]
    assert torch.equal(model.weight, before)
    with pytest.raises(UserError, match=r'some\.pth holds a list, expected a state dict'):
        load_strictly(model, [1])


def test_bfloat16_wrapper_needs_no_accelerator() -> None:
    """The forward pass is bfloat16, weights and gradients stay float32, GPU states load."""
    model = nn.Linear(4, 2)
    wrapper = BFloat16OptimWrapper(optimizer=torch.optim.AdamW(model.parameters()))
    weight = model.weight.detach().clone()
    with wrapper.optim_context(model):
        output = model(torch.ones(3, 4, device=get_device()))
    assert output.dtype == torch.bfloat16
    wrapper.update_params(output.float().sum())
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, weight)
    state = wrapper.state_dict()
    wrapper.load_state_dict({**state, 'loss_scaler': {'scale': 65536.0}})
    assert wrapper.state_dict()['state'].keys() == state['state'].keys()


@pytest.mark.parametrize(
    ('wrapper', 'enable', 'kind'),
    [
        (dict(type='OptimWrapper'), False, 'OptimWrapper'),
        (dict(), True, 'AmpOptimWrapper'),
        (dict(type='OptimWrapper'), True, 'AmpOptimWrapper'),
        (dict(type='AmpOptimWrapper', dtype='float16', loss_scale=512.0), False, 'AmpOptimWrapper'),
    ],
)
@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_amp_fits_the_device(wrapper: dict, enable: bool, kind: str, device: str) -> None:
    """AmpOptimWrapper, which only runs on accelerators, is never chosen for a CPU."""
    cfg = Config(dict(model=dict(type='ImageClassifier'), optim_wrapper=wrapper))
    TRAIN.set_mixed_precision(cfg, enable, device)
    chosen = cfg.optim_wrapper.to_dict()
    if kind == 'AmpOptimWrapper' and device == 'cpu':
        assert chosen == dict(type='mmlavit.BFloat16OptimWrapper')
    else:
        assert chosen['type'] == kind
        if kind == 'AmpOptimWrapper':
            assert chosen['loss_scale'] == wrapper.get('loss_scale', 'dynamic')


def test_amp_of_a_detector_with_roi_align_needs_a_gpu() -> None:
    """mmcv's RoIAlign cannot read bfloat16, so the run stops before it starts."""
    cfg = Config(dict(model=dict(roi_head=dict(type='StandardRoIHead')), optim_wrapper=dict()))
    with pytest.raises(UserError, match='without a GPU is bfloat16, which RoIAlign'):
        TRAIN.set_mixed_precision(cfg, True, 'cpu')


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('model.backbon.arch', "model has no key 'backbon'; close matches: backbone"),
        ('train_dataloadr.batch_size', 'close matches: train_dataloader'),
        ('wrok_dir', 'close matches: work_dir'),
        ('model.backbone.depth.stem', "'model.backbone.depth' is 18, not a dictionary or a list"),
        ('scheduler.7.end', "the config has no key 'scheduler'"),
        ('test_pipeline.2.type', "'test_pipeline' is a list of 2 elements"),
        ('test_pipeline.type', "expected an index below 2, found 'type'"),
    ],
)
def test_override_that_leads_nowhere_stops(key: str, message: str) -> None:
    """A misspelt path names itself and its close matches, and changes nothing."""
    cfg = Config.fromfile('cls.py')
    before = cfg.pretty_text
    with pytest.raises(UserError) as error:
        merge_overrides(cfg, {'train_cfg.max_epochs': 7, key: 1})
    assert str(error.value).startswith(f'--cfg-options {key}: ')
    assert message in str(error.value)
    assert cfg.pretty_text == before


@pytest.mark.parametrize(
    'key',
    [
        'model.backbone.depth',
        'model.backbone.with_cp',
        'model.backbone.init_cfg.checkpoint',
        'optim_wrapper.clip_grad.max_norm',
        'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult',
        'randomness.seed',
        'load_from',
        'find_unused_parameters',
        'custom_hooks.0.momentum',
    ],
)
def test_override_that_leads_somewhere_is_merged(key: str) -> None:
    """Existing keys, new arguments of what exists and the runner's own keys are allowed."""
    cfg = Config.fromfile('cls.py')
    merge_overrides(cfg, {key: 1})
    node = cfg
    for part in key.split('.'):
        node = node[int(part)] if isinstance(node, list) else node[part]
    assert node == 1


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (('none.py',), "config file 'none.py' does not exist"),
        (('broken.py',), "config file 'broken.py' cannot be read: invalid syntax"),
        (('cls.py', '--launcher', 'ssh'), "invalid choice: 'ssh'"),
        (('cls.py', '--launcher', 'pytorch'), 'RANK is not set'),
        (('cls.py', '--resume', 'none.pth'), "checkpoint 'none.pth' does not exist"),
        (('cls.py', '--resume', 'broken.py'), "checkpoint 'broken.py' is damaged"),
        (('seg.py', '--auto-scale-lr'), 'seg.py has no auto_scale_lr.base_batch_size'),
        (('cls.py', '--cfg-options', 'model'), "expected KEY=VALUE, found 'model'"),
        (('cls.py', '--cfg-options', 'default_scope=mmyolo'), "default_scope is 'mmyolo'"),
        (
            ('cls.py', '--cfg-options', 'train_dataloader.dataset.data_root=nowhere'),
            "data_root 'nowhere' does not exist",
        ),
        (
            ('cls.py', '--amp', '--cfg-options', 'optim_wrapper.type=ApexOptimWrapper'),
            "optim_wrapper.type is 'ApexOptimWrapper'",
        ),
    ],
)
def test_train_explains_user_errors(
    argv: tuple[str, ...], message: str, fails: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input ends in one line that names it."""
    monkeypatch.delenv('RANK', raising=False)
    Path('broken.py').write_text('model = = 1\n')
    found = fails(TRAIN, *argv)
    assert message in found
    assert found.count('\n') == 1


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (('cls.py', 'none.pth'), "checkpoint 'none.pth' does not exist"),
        (('cls.py', 'cls.py'), "checkpoint 'cls.py' is damaged"),
        (('cls.py', 'cls.pth', '--out', 'x.json'), 'expected a file ending in .pkl, .pickle'),
        (('det.py', 'cls.pth', '--out', 'x'), 'expected a file ending in .pkl, .pickle'),
        (('seg.py', 'cls.pth', '--out', 'x.pkl'), 'mmseg writes PNG files'),
        (('cls.py', 'cls.pth', '--out-item', 'pred'), '--out-item needs --out'),
        (('seg.py', 'cls.pth', '--tta'), 'seg.py has no tta_model, tta_pipeline'),
        (('cls.py', 'cls.pth', '--tta', '--show-dir', 'x'), 'cannot paint augmented images'),
        (('det.py', 'cls.pth', '--show', '--interval', '2'), 'paints every test image'),
    ],
)
def test_test_explains_user_errors(
    argv: tuple[str, ...], message: str, checkpoint: str, fails: Run
) -> None:
    """Bad input ends in one line that names it, before a model is built."""
    found = fails(TEST, *argv)
    assert message in found
    assert found.count('\n') == 1


@pytest.mark.parametrize('name', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_launchers_explain_their_usage(name: str) -> None:
    """A launcher without arguments starts nothing."""
    result = subprocess.run(
        ['bash', TOOLS / f'{name}.sh'], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith('usage: ')


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def launch(script: str, *argv: str) -> str:
    env = {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        'PORT': free_port(),
        'CUDA_VISIBLE_DEVICES': '',
        'OMP_NUM_THREADS': '1',
    }
    env.pop('LOCAL_RANK')
    result = subprocess.run(
        ['bash', TOOLS / script, *argv],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


@pytest.mark.skipif(get_device() != 'cpu', reason='the process group is NCCL')
def test_sync_bn_trains_in_a_process_group_on_cpu(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SyncBatchNorm of the model and of cfg.sync_bn becomes BatchNorm, and the log says so."""
    for name, value in (
        ('RANK', '0'),
        ('WORLD_SIZE', '1'),
        ('MASTER_ADDR', '127.0.0.1'),
        ('MASTER_PORT', free_port()),
    ):
        monkeypatch.setenv(name, value)
    output = run(
        TRAIN,
        'cls.py',
        '--launcher',
        'pytorch',
        '--cfg-options',
        'sync_bn=torch',
        '--work-dir',
        'work_dirs/sync_bn',
    )
    assert '1 processes work together over gloo' in output
    assert 'SyncBatchNorm layers, if there are any, become BatchNorm layers' in output
    assert 'Epoch(train) [1][4/4]' in output
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(run: Run) -> None:
    """Two processes share the data and average their gradients; a test merges predictions."""
    options = (
        '--no-validate',
        '--cfg-options',
        'randomness.seed=0',
        'custom_hooks=[]',
        'train_dataloader.sampler.shuffle=False',
        # batch statistics are those of one process, so they must not count
        'model.backbone.norm_eval=True',
    )
    run(TRAIN, 'cls.py', *options, 'train_dataloader.batch_size=12', '--work-dir', 'work_dirs/one')
    two = 'work_dirs/two processes'
    output = launch(
        'dist_train.sh', 'cls.py', '2', *options, 'train_dataloader.batch_size=6', '--work-dir', two
    )
    assert '2 processes work together over gloo' in output
    states = [
        torch.load(f'{work_dir}/epoch_1.pth', weights_only=False)['state_dict']
        for work_dir in ('work_dirs/one', two)
    ]
    torch.testing.assert_close(*states)

    output = launch(
        'dist_test.sh',
        'cls.py',
        f'{two}/epoch_1.pth',
        '2',
        '--out',
        'out/two.pkl',
        '--work-dir',
        'work_dirs/two test',
    )
    assert 'accuracy/top1' in metrics_of(output)
    paths = [prediction['img_path'] for prediction in predictions('out/two.pkl')]
    assert len(set(paths)) == len(paths) == TEST_IMAGES
