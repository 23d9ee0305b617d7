"""Every config of the repository trains and predicts, on real files through upstream's classes."""

import inspect
import math
import subprocess
import sys
from pathlib import Path

import mmdet
import mmpretrain
import mmseg
import pytest
import torch
from conftest import ROOT, forget_runs
from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from small_configs import Predictions, fit_nano, load
from watched_config import deprecations, unread_keys, watch

from mmlavit.cli.launch import build_runner

CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parts
)
IMAGENET = [path for path in CONFIGS if path.match('configs/classification/*')]
# what mmengine's runner and the tools read from a config, and variables that configs pass on
TOP_LEVEL = set(inspect.signature(Runner.__init__).parameters) | {
    'auto_scale_lr', 'tta_model', 'tta_pipeline', 'vis_backends', 'backend_args', 'data_root',
    'dataset_type', 'metainfo', 'norm_cfg', 'train_pipeline', 'test_pipeline', 'bgr_mean',
    'bgr_std', 'scales', 'crop_size',
}  # fmt: skip


@pytest.fixture(autouse=True)
def forget():
    """Leave no visualizer behind: the next run would not build its own."""
    yield
    forget_runs()


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_validates_and_tests(path, shapes, tmp_path, recwarn):
    """Each key of the config is read on the way, and none is deprecated."""
    cfg = load(path, shapes, tmp_path)
    cfg.model.backbone.arch = 'nano'
    fit_nano(cfg.model)
    read, predicted = set(), []
    runner = build_runner(watch(cfg, read))
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    assert list(tmp_path.glob('*_1.pth'))
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
    hooks = [hook['type'] for hook in cfg.get('custom_hooks') or []]
    has_dp = 'mmlavit.DiagonalityLossHook' in hooks
    assert ('train/loss_dp' in runner.message_hub.log_scalars) == has_dp
    after = runner.model.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    runner.register_hook(Predictions(predicted))
    runner.test()
    assert len(predicted) == 2
    assert unread_keys(cfg, read) == []
    assert deprecations(recwarn.list, tmp_path) == []


BACKBONES = {
    'swin': dict(
        type='SwinTransformer', embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)
    ),
    'resnet': dict(type='ResNet', depth=18, base_channels=32, norm_eval=False),
}


@pytest.mark.parametrize('backbone', BACKBONES.values(), ids=BACKBONES)
@pytest.mark.parametrize('name', ['mask-rcnn_lavit-nano_shapes', 'upernet_lavit-nano_shapes'])
def test_another_backbone_trains_in_our_config(name, backbone, shapes, tmp_path):
    """On images of several sizes in a batch: what pads them is an image to any backbone."""
    cfg = load(f'configs/shapes/{name}.py', shapes, tmp_path)
    cfg.model.backbone = dict(backbone)
    size = {'mmdet': dict(crop_type='relative_range', crop_size=(0.4, 0.4)),
            'mmseg': dict(crop_size=(61, 75))}[cfg.default_scope]  # fmt: skip
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='RandomCrop', **size))
    runner = build_runner(cfg)
    runner.train()
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


@pytest.mark.parametrize(
    ('name', 'key', 'value'),
    [
        ('lavit-nano_shapes-cls', 'optim_wrapper.paramwise_cfg.norm_decay', 0.0),
        ('retinanet_lavit-nano_shapes', 'model.test_cfg.score_threshold', 0.5),
        ('mask-rcnn_lavit-nano_shapes', 'model.train_cfg.rpn.alowed_border', -1),
        ('mask-rcnn_lavit-nano_shapes', 'model.test_cfg.rcnn.score_thrs', 0.1),
        ('upernet_lavit-nano_shapes', 'model.test_cfg.strides', (96, 96)),
    ],
)
def test_a_key_that_nothing_reads_is_found(name, key, value, shapes, tmp_path):
    """Keys that no constructor refuses: upstream runs on without a word."""
    cfg = load(f'configs/shapes/{name}.py', shapes, tmp_path)
    cfg.merge_from_dict({key: value})
    read = set()
    runner = build_runner(watch(cfg, read))
    runner.train()
    runner.test()
    assert unread_keys(cfg, read) == [key]


def test_a_deprecated_key_is_found(shapes, tmp_path, recwarn):
    cfg = load('configs/shapes/upernet_lavit-nano_shapes.py', shapes, tmp_path)
    cfg.train_dataloader.dataset.pipeline[1].reduce_zero_label = False
    build_runner(cfg).train()
    (found,) = deprecations(recwarn.list, tmp_path)
    assert '`reduce_zero_label` will be deprecated' in found


@pytest.mark.parametrize(
    'base', ['../_base_/models/lavit-cls.py', 'mmdet::_base_/models/mask_rcnn_r50_fpn.py']
)
def test_a_missing_base_stops_the_reader(base, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(f'_base_ = [{base!r}]\n')
    with pytest.raises((ConfigParsingError, FileNotFoundError), match=Path(base).stem):
        Config.fromfile(path)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_at_its_own_size_with_the_usual_exemptions(path):
    """Channels of backbone, neck and heads agree; norms, biases and LayerScale do not decay."""
    cfg = Config.fromfile(ROOT / path)
    assert set(cfg) <= TOP_LEVEL, 'a key that nothing reads'
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decays = {}
    for group in wrapper.optimizer.param_groups:
        decays.update({id(param): group['weight_decay'] for param in group['params']})
    for name, param in model.backbone.named_parameters():
        exempt = 'norm' in name or name.endswith(('bias', 'layer_scale'))
        assert decays[id(param)] == (0 if exempt else 0.05), name
    maps = model.backbone(torch.zeros(1, 3, 32, 32))
    if 'neck' in cfg.model and 'in_channels' in cfg.model.neck:
        assert [m.shape[1] for m in maps] == list(cfg.model.neck.in_channels)
    elif 'decode_head' in cfg.model:
        assert [m.shape[1] for m in maps] == list(cfg.model.decode_head.in_channels)
        assert maps[2].shape[1] == cfg.model.auxiliary_head.in_channels
    else:
        assert maps[0].shape[1] == cfg.model.head.in_channels


@pytest.mark.parametrize('path', IMAGENET, ids=lambda path: path.stem)
def test_imagenet_recipe(path):
    cfg = Config.fromfile(ROOT / path)
    assert cfg.train_cfg.max_epochs == 300
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs
    # a floor in absolute terms would lie above a learning rate that was scaled down
    assert all('eta_min' not in scheduler for scheduler in cfg.param_scheduler)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_upstream_tools_may_scale_the_learning_rate(path):
    """mmdet's and mmseg's --auto-scale-lr want the key that they switch; mmpretrain's does not."""
    cfg = Config.fromfile(ROOT / path)
    assert cfg.auto_scale_lr.base_batch_size
    assert cfg.default_scope == 'mmpretrain' or cfg.auto_scale_lr.enable is False


UPSTREAM = {
    mmpretrain: ('lavit-nano_shapes-cls.py', 'classification', 'accuracy/top1'),
    mmdet: ('mask-rcnn_lavit-nano_shapes.py', 'coco', 'coco/bbox_mAP'),
    mmseg: ('upernet_lavit-nano_shapes.py', 'ade20k', 'mIoU'),
}


@pytest.mark.parametrize('toolbox', UPSTREAM, ids=lambda toolbox: toolbox.__name__)
def test_upstream_tools_run_a_config_from_another_directory(toolbox, shapes, tmp_path):
    """The toolboxes' own tools find the backbone, the hook and the bases without further ado."""
    name, layout, metric = UPSTREAM[toolbox]
    config = ROOT / 'configs/shapes' / name
    options = ['model.backbone.init_cfg=None', 'default_hooks.logger.interval=1']
    if toolbox is mmseg:
        options += ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
        options += ['default_hooks.checkpoint.interval=2']
    else:
        options += ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
        batch = len(list((shapes / layout).glob('train*/**/*.png'))) // 2
        options += [f'train_dataloader.batch_size={batch}']
    for split in ('train', 'val', 'test'):
        options.append(f'{split}_dataloader.dataset.data_root={shapes / layout}')
    if toolbox is mmdet:
        annotations = shapes / 'coco/annotations/instances_val2017.json'
        options += [f'{split}_evaluator.ann_file={annotations}' for split in ('val', 'test')]
    tools = Path(toolbox.__file__).parent / '.mim/tools'
    out = tmp_path / 'out'

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command, '--work-dir', out, '--cfg-options', *options],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    trained = run(tools / 'train.py', config)
    assert '2/2]' in trained
    assert ('loss_dp' in trained) == (toolbox is mmpretrain)
    checkpoint = (out / 'last_checkpoint').read_text()
    tested = run(tools / 'test.py', config, checkpoint)
    # an untrained detector finds nothing that COCO's metric counts, and upstream says so
    assert metric in tested or 'The testing results of the whole dataset is empty' in tested
