"""Every config of the repository trains and predicts, on real files through upstream's classes."""

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, forget_runs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from small_configs import Predictions, fit_nano, load
from watched_config import deprecations, unread_keys, watch

from mmlavit.cli.launch import build_runner
from mmlavit.shipped import config_names

CONFIGS = [Path('configs', name) for name in config_names()]
IMAGENET = [path for path in CONFIGS if path.match('configs/classification/*')]
# what mmengine's runner and the tools read from a config, and variables that configs pass on
TOP_LEVEL = set(inspect.signature(Runner.__init__).parameters) | {
    'auto_scale_lr', 'runner_type', 'tta_model', 'tta_pipeline', 'vis_backends', 'backend_args',
    'data_root', 'dataset_type', 'metainfo', 'norm_cfg', 'train_pipeline', 'test_pipeline',
    'bgr_mean', 'bgr_std', 'scales', 'ms_crop', 'crop_size', 'lavit_det',
}  # fmt: skip
every_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Leave no visualizer behind: the next run would not build its own."""
    yield
    forget_runs()


@every_config
def test_every_config_trains_validates_and_tests(
    path: Path, shapes: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Each key of the config is read on the way, and none is deprecated."""
    cfg = load(path, shapes, tmp_path)
    cfg.model.backbone.arch = 'nano'
    fit_nano(cfg.model)
    read: set[str] = set()
    predicted: list[Any] = []
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
def test_another_backbone_trains_in_our_config(
    name: str, backbone: dict[str, Any], shapes: Path, tmp_path: Path
) -> None:
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


def test_what_nothing_reads_and_what_is_deprecated_is_found(
    shapes: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Keys that no constructor refuses: upstream runs on without a word."""
    cfg = load('configs/shapes/upernet_lavit-nano_shapes.py', shapes, tmp_path)
    cfg.model.test_cfg.strides = (96, 96)
    cfg.train_dataloader.dataset.pipeline[1].reduce_zero_label = False
    read: set[str] = set()
    runner = build_runner(watch(cfg, read))
    runner.train()
    runner.test()
    assert unread_keys(cfg, read) == ['model.test_cfg.strides']
    (found,) = deprecations(recwarn.list, tmp_path)
    assert '`reduce_zero_label` will be deprecated' in found


@every_config
def test_every_config_names_what_protects_its_run(path: Path) -> None:
    """In keys that upstream's tools read; --auto-scale-lr of mmdet and mmseg wants its own."""
    cfg = Config.fromfile(ROOT / path)
    assert set(cfg) <= TOP_LEVEL, 'a key that nothing reads'
    assert cfg.runner_type == 'mmlavit.PortableRunner'
    assert cfg.train_cfg.type in ('mmlavit.ResumableEpochLoop', 'mmlavit.ResumableIterLoop')
    hooks = {hook.type.removeprefix('mmlavit.') for hook in cfg.default_hooks.values()}
    assert hooks >= {'StopHook', 'FiniteLossHook', 'StrictLoadHook', 'DatasetCheckHook'}
    assert ('Float32OperatorsHook' in hooks) == (cfg.default_scope == 'mmdet')
    assert cfg.default_hooks.checkpoint.backend_args == {'backend': 'mmlavit_atomic'}
    assert cfg.default_hooks.checkpoint.max_keep_ckpts >= 2
    assert cfg.randomness.seed is not None
    assert cfg.auto_scale_lr.base_batch_size
    assert cfg.default_scope == 'mmpretrain' or cfg.auto_scale_lr.enable is False


@every_config
def test_every_config_builds_at_its_own_size_with_the_usual_exemptions(path: Path) -> None:
    """Channels of backbone, neck and heads agree; norms, biases and LayerScale do not decay."""
    cfg = Config.fromfile(ROOT / path)
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
    channels = [m.shape[1] for m in model.backbone(torch.zeros(1, 3, 32, 32))]
    if 'in_channels' in cfg.model.get('neck', {}):
        assert channels == list(cfg.model.neck.in_channels)
    elif 'decode_head' in cfg.model:
        assert channels == list(cfg.model.decode_head.in_channels)
        assert channels[2] == cfg.model.auxiliary_head.in_channels
    else:
        assert channels == [cfg.model.head.in_channels]


@pytest.mark.parametrize('path', IMAGENET, ids=lambda path: path.stem)
def test_imagenet_recipe(path: Path) -> None:
    """Schedules end with the run, and --auto-scale-lr leaves no floor above the rate."""
    cfg = Config.fromfile(ROOT / path)
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs == 300
    assert all('eta_min' not in scheduler for scheduler in cfg.param_scheduler)
