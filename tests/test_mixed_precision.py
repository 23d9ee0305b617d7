"""Mixed precision: --amp and bfloat16 on a GPU, and what a CPU can tell of them."""

import math
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, Run, load_tool
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from small_configs import load

from mmlavit.cli.amp import enable_amp
from mmlavit.cli.launch import build_runner
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
    if dtype == 'bfloat16':
        cfg.optim_wrapper.dtype = dtype
        cfg.custom_hooks.append(dict(type='mmlavit.Float32OperatorsHook'))
    # float16 finds its scale by steps that it skips, and here is one step only
    cfg.optim_wrapper.loss_scale = 8.0
    enable_amp(cfg)
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
    assert message.endswith('error: --amp needs a GPU, and torch finds none\n')
    assert message.count('\n') == 1


@pytest.mark.parametrize(
    ('wrapper', 'chosen'),
    [
        (dict(), dict(loss_scale='dynamic')),
        (dict(type='OptimWrapper'), dict(loss_scale='dynamic')),
        (dict(type='AmpOptimWrapper', loss_scale=512.0), dict(loss_scale=512.0)),
        (dict(dtype='bfloat16'), dict(loss_scale='dynamic', dtype='bfloat16')),
    ],
)
def test_amp_keeps_what_the_config_says(wrapper, chosen, monkeypatch):
    monkeypatch.setattr('mmlavit.cli.amp.get_device', lambda: 'cuda')
    cfg = Config(dict(optim_wrapper=wrapper))
    enable_amp(cfg)
    assert cfg.optim_wrapper.to_dict() == dict(chosen, type='AmpOptimWrapper')
    with pytest.raises(UserError, match="optim_wrapper.type is 'ApexOptimWrapper'"):
        enable_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))))


@pytest.fixture
def build():
    """Build the Shapes detector of a name from the same weights, with the hook or without."""

    def call(name, with_hook):
        cfg = Config.fromfile(ROOT / CONFIG.format(name))
        cfg.model.backbone.init_cfg = None
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(cfg.model).train()
        if with_hook:
            Float32OperatorsHook().before_run(SimpleNamespace(model=model))
        return model

    return call


def test_roi_features_are_float32_at_exact_coordinates(build):
    """In bfloat16, boxes near x = 1000 would land on a grid of 4 pixels."""
    plain, hooked = (build('mask-rcnn', hook).roi_head.bbox_roi_extractor for hook in (False, True))
    maps = [torch.randn(1, 64, 200 // 2**i, 1344 // (4 * 2**i)).bfloat16() for i in range(4)]
    rois = torch.tensor([[0, 1001.3, 20.7, 1049.2, 66.1], [0, 803.9, 300.2, 1331.7, 777.5]])
    features = hooked(maps, rois)
    assert features.dtype == torch.float32
    assert torch.equal(features, plain([m.float() for m in maps], rois))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_heads_return_float32_instead_of_bfloat16(build, dtype):
    """mmcv's focal loss reads what they return; float16, which it knows, stays."""
    head = build('retinanet', True).bbox_head
    maps = [torch.randn(1, 64, 8 // 2**i + 1, 8 // 2**i + 1) for i in range(5)]
    with torch.autocast('cpu', dtype):
        outputs = head(maps)
    expected = torch.float32 if dtype == torch.bfloat16 else dtype
    assert {x.dtype for level in outputs for x in level} == {expected}


def test_gradients_of_bfloat16_point_where_float32_points(build, shapes, tmp_path):
    """Losses agree within a few percent, and gradients of each part in direction and length."""
    cfg = load(CONFIG.format('mask-rcnn'), shapes, tmp_path)
    with DefaultScope.overwrite_default_scope('mmdet'):
        data = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    found = []
    for mixed in (False, True):
        detector = build('mask-rcnn', mixed)
        batch = detector.data_preprocessor(deepcopy(data), True)
        torch.manual_seed(0)  # which boxes are sampled
        with torch.autocast('cpu', torch.bfloat16, enabled=mixed):
            losses = detector(**batch, mode='loss')
        loss, log = detector.parse_losses(losses)
        loss.backward()
        found.append((log, {name: p.grad for name, p in detector.named_parameters()}))
    (plain_log, plain), (mixed_log, mixed) = found
    for name, value in mixed_log.items():
        torch.testing.assert_close(value, plain_log[name], rtol=0.05, atol=0.01)
    for part in ('backbone', 'neck', 'rpn_head', 'roi_head'):
        names = [name for name in plain if name.startswith(part)]
        a, b = (torch.cat([g[name].flatten() for name in names]) for g in (plain, mixed))
        assert torch.cosine_similarity(a, b, 0) > 0.9, part
        assert 0.8 < b.norm() / a.norm() < 1.25, part
