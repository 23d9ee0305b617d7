"""Mixed precision: --amp and bfloat16 on a GPU, and what a CPU can tell of them."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, Run, load_tool
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from small_configs import load

from mmlavit.cli.configs import training_config
from mmlavit.cli.launch import build_runner
from mmlavit.cli.parsers import TrainingParser
from mmlavit.engine import Float32OperatorsHook
from mmlavit.errors import UserError

CONFIG = 'configs/shapes/{}_lavit-nano_shapes.py'
GPU = torch.cuda.is_available()


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason='needs a GPU')
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('detector', ['mask-rcnn', 'retinanet'])
def test_a_detector_trains_and_validates(detector, dtype, shapes, tmp_path):
    """With mmcv's RoIAlign, NMS and focal loss, and the diagonality loss."""
    cfg = load(CONFIG.format(detector), shapes, tmp_path)
    cfg.custom_hooks = [dict(type='mmlavit.DiagonalityLossHook')]
    cfg.val_cfg.fp16 = True  # as tools/test.py --amp
    # float16 finds its scale by steps that it skips, and here is one step only
    cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale=8.0)
    if dtype == 'bfloat16':
        cfg.optim_wrapper.dtype = dtype
        cfg.custom_hooks.append(dict(type='mmlavit.Float32OperatorsHook'))
    runner = build_runner(cfg)
    runner.train()
    for name in ('loss', 'loss_dp', 'grad_norm'):
        assert 0 < runner.message_hub.get_scalar(f'train/{name}').current() < math.inf, name


@pytest.mark.skipif(GPU, reason='there is a GPU')
@pytest.mark.usefixtures('isolated')
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_amp_needs_a_gpu(tool: str, checkpoint: str, fails: Run) -> None:
    argv = ['cls.py', '--amp', *([checkpoint] if tool == 'test' else [])]
    message = fails(load_tool(tool), *argv)
    assert re.fullmatch('.*error: --amp needs a GPU, and torch finds none\n', message)


@pytest.mark.usefixtures('isolated')
@pytest.mark.parametrize('options', [{}, {'loss_scale': 512.0}, {'dtype': 'bfloat16'}], ids=str)
def test_amp_keeps_what_the_config_says(options, monkeypatch):
    monkeypatch.setattr('mmlavit.cli.configs.get_device', lambda: 'cuda')

    def wrapper(**given):
        overrides = [f'optim_wrapper.{key}={value}' for key, value in given.items()]
        argv = ['cls.py', '--amp', '--cfg-options', *overrides]
        return training_config(TrainingParser('').parse_args(argv)).optim_wrapper

    found = wrapper(type='OptimWrapper', **options)
    expected = {'type': 'AmpOptimWrapper', 'loss_scale': 'dynamic', **options}
    assert {key: found[key] for key in expected} == expected
    with pytest.raises(UserError, match="optim_wrapper.type is 'ApexOptimWrapper'"):
        wrapper(type='ApexOptimWrapper')


def build(name, with_hook):
    """The Shapes detector of a name from the same weights, with the hook or without."""
    cfg = Config.fromfile(ROOT / CONFIG.format(name))
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).train()
    if with_hook:
        Float32OperatorsHook().before_run(SimpleNamespace(model=model))
    return model


def test_roi_features_are_float32_at_exact_coordinates():
    """In bfloat16, boxes near x = 1000 would land on a grid of 4 pixels."""
    plain, hooked = (build('mask-rcnn', hook).roi_head.bbox_roi_extractor for hook in (False, True))
    maps = [torch.randn(1, 64, 200 // 2**i, 1344 // (4 * 2**i)).bfloat16() for i in range(4)]
    rois = torch.tensor([[0, 1001.3, 20.7, 1049.2, 66.1], [0, 803.9, 300.2, 1331.7, 777.5]])
    features = hooked(maps, rois)
    assert features.dtype == torch.float32
    assert torch.equal(features, plain([m.float() for m in maps], rois))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_heads_return_float32_instead_of_bfloat16(dtype):
    """mmcv's focal loss reads what they return; float16, which it knows, stays."""
    head = build('retinanet', True).bbox_head
    maps = [torch.randn(1, 64, 8 // 2**i + 1, 8 // 2**i + 1) for i in range(5)]
    with torch.autocast('cpu', dtype):
        outputs = head(maps)
    expected = torch.float32 if dtype == torch.bfloat16 else dtype
    assert {x.dtype for level in outputs for x in level} == {expected}
