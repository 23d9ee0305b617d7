"""Every config of the repository trains and predicts, on real files through upstream's classes."""

import inspect
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, forget_runs
from mmengine.config import Config
from mmengine.fileio import load as read_file
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from small_configs import Predictions, fit_nano, load
from watched_config import deprecations, unread_keys, watch

from mmlavit.apis.complexity import multiply_adds
from mmlavit.cli.launch import build_runner
from mmlavit.models.backbones.arch import ARCHS
from mmlavit.shipped import config_names

CONFIGS = [Path('configs', name) for name in config_names()]
# what mmengine's runner and the tools read from a config, and variables that configs pass on
TOP_LEVEL = set(inspect.signature(Runner.__init__).parameters) | {
    'auto_scale_lr', 'runner_type', 'tta_model', 'tta_pipeline', 'vis_backends', 'backend_args',
    'data_root', 'dataset_type', 'metainfo', 'norm_cfg', 'train_pipeline', 'test_pipeline',
    'bgr_mean', 'bgr_std', 'scales', 'ms_crop', 'crop_size', 'lavit_det',
}  # fmt: skip
METADATA = {
    Path(model['Config']): model['Metadata']
    for metafile in read_file(ROOT / 'model-index.yml')['Import']
    for model in read_file(ROOT / metafile)['Models']
}
every_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Leave no visualizer behind: the next run would not build its own."""
    yield
    forget_runs()


def load_as_nano(path: Path, shapes: Path, tmp_path: Path) -> Config:
    cfg = load(path, shapes, tmp_path)
    cfg.model.backbone.arch = 'nano'
    fit_nano(cfg.model)
    return cfg


@every_config
def test_every_config_trains_validates_and_tests(
    path: Path, shapes: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Each key of the config is read on the way, and none is deprecated."""
    cfg = load_as_nano(path, shapes, tmp_path)
    small = path.with_name(re.sub('-(tiny|base)', '-small', path.name))
    if path != small and small in CONFIGS:  # one recipe in several sizes is trained once
        assert cfg.to_dict() == load_as_nano(small, shapes, tmp_path).to_dict()
        return
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


@pytest.mark.parametrize(
    ('name', 'crop', 'backbone'),
    [
        (
            'mask-rcnn_lavit-nano_shapes',
            dict(crop_type='relative_range', crop_size=(0.4, 0.4)),
            dict(type='SwinTransformer', embed_dims=32, depths=[1] * 4, num_heads=[1, 2, 4, 8]),
        ),
        (
            'upernet_lavit-nano_shapes',
            dict(crop_size=(61, 75)),
            dict(type='ResNet', depth=18, base_channels=32, norm_eval=False),
        ),
    ],
)
def test_another_backbone_trains_in_our_config(
    name: str, crop: dict[str, Any], backbone: dict[str, Any], shapes: Path, tmp_path: Path
) -> None:
    """On images of several sizes in a batch: what pads them is an image to any backbone."""
    cfg = load(f'configs/shapes/{name}.py', shapes, tmp_path)
    cfg.model.backbone = backbone
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='RandomCrop', **crop))
    runner = build_runner(cfg)
    runner.train()
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


@every_config
def test_every_config_names_what_protects_its_run_and_builds_at_its_own_size(path: Path) -> None:
    """In keys that upstream's tools read; channels agree; norms, biases and LayerScale keep all.

    Parameters, multiply-adds and the schedule are those of the metafile.
    """
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
    if path.match('configs/classification/*'):
        assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 1024
        assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs == 300
        # --auto-scale-lr would leave a floor as it is
        assert all('eta_min' not in scheduler for scheduler in cfg.param_scheduler)
    elif cfg.default_scope != 'mmpretrain':
        assert cfg.auto_scale_lr.enable is False  # --auto-scale-lr of mmdet and mmseg wants the key

    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = wrapper.optimizer.param_groups
    decays = {id(param): group['weight_decay'] for group in groups for param in group['params']}
    for name, param in model.backbone.named_parameters():
        exempt = 'norm' in name or name.endswith(('bias', 'layer_scale'))
        assert decays[id(param)] == (0 if exempt else 0.05), name
    channels = [m.shape[1] for m in model.backbone(torch.zeros(1, 3, 32, 32, device='meta'))]
    if 'in_channels' in cfg.model.get('neck', {}):
        assert channels == list(cfg.model.neck.in_channels)
    elif 'decode_head' in cfg.model:
        assert channels == list(cfg.model.decode_head.in_channels)
        assert channels[2] == cfg.model.auxiliary_head.in_channels
    else:
        assert channels == [cfg.model.head.in_channels]

    meta = METADATA[path]
    assert meta['Parameters'] == round(sum(p.numel() for p in model.parameters()), -4)
    assert meta['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert meta.get('Epochs') == cfg.train_cfg.get('max_epochs')
    assert meta.get('Iterations') == cfg.train_cfg.get('max_iters')
    if 'FLOPs' in meta:
        assert meta['FLOPs'] == round(multiply_adds(model, (224, 224))[''], -7)
    if 'Depths' in meta:
        texts = [meta[key] for key in ('Channels', 'Depths', 'VA Layers')]
        shape = [tuple(int(value) for value in text.split(', ')) for text in texts]
        assert shape == list(ARCHS[cfg.model.backbone.arch][:3])
