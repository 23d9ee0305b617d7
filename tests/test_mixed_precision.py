"""Mixed precision of detectors without a GPU: what mmcv and the metrics read stays float32."""

import math
import re
from contextlib import nullcontext

import pytest
import torch
from conftest import ROOT, forget_runs, load_tool, predictions
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from small_configs import Predictions, fit_nano, load

from mmlavit.cli.launch import build_runner
from mmlavit.engine import BFloat16OptimWrapper, add_float32_operators
from mmlavit.engine.optimizers.float32_operators import float32_operators

MASK_RCNN = ROOT / 'configs/shapes/mask-rcnn_lavit-nano_shapes.py'
cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU, --amp is float16')


@pytest.fixture(scope='module')
def detector():
    """A Mask R-CNN of seeded weights."""
    cfg = Config.fromfile(MASK_RCNN)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg.model).train()


@pytest.fixture(scope='module')
def batch(detector, shapes, tmp_path_factory):
    cfg = load(
        'configs/shapes/mask-rcnn_lavit-nano_shapes.py', shapes, tmp_path_factory.mktemp('amp')
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        return detector.data_preprocessor(next(iter(loader)), True)


def test_roi_features_are_float32_at_exact_coordinates(detector):
    """In bfloat16, boxes near x = 1000 would land on a grid of 4 pixels."""
    extractor = detector.roi_head.bbox_roi_extractor
    maps = [torch.randn(1, 64, 200 // 2**i, 1344 // (4 * 2**i)).bfloat16() for i in range(4)]
    rois = torch.tensor([[0, 1001.3, 20.7, 1049.2, 66.1], [0, 803.9, 300.2, 1331.7, 777.5]])
    with float32_operators(detector):
        features = extractor(maps, rois)
    assert features.dtype == torch.float32
    assert torch.equal(features, extractor([m.float() for m in maps], rois))
    # behind the context everything is as it was
    with pytest.raises(RuntimeError, match='BFloat16'):
        extractor(maps, rois)


@pytest.fixture(autouse=True)
def forget():
    """Leave no logger behind: the next run may start in the same second."""
    yield
    forget_runs()


def gradients(detector, batch, context):
    torch.manual_seed(0)  # which boxes are sampled
    detector.zero_grad()
    with context:
        losses = detector(**batch, mode='loss')
    loss, log = detector.parse_losses(losses)
    loss.backward()
    return log, {name: param.grad.clone() for name, param in detector.named_parameters()}


@cpu
def test_gradients_point_where_float32_points(detector, batch):
    """Losses agree within a few percent, and gradients of each part in direction and length."""
    wrapper = BFloat16OptimWrapper(optimizer=torch.optim.SGD(detector.parameters(), lr=0.0))
    plain_log, plain = gradients(detector, batch, torch.enable_grad())
    mixed_log, mixed = gradients(detector, batch, wrapper.optim_context(detector))
    assert plain_log.keys() == mixed_log.keys()
    for name, value in mixed_log.items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, plain_log[name], rtol=0.05, atol=0.01)
    for part in ('backbone', 'neck', 'rpn_head', 'roi_head'):
        names = [name for name in plain if name.startswith(part)]
        a, b = (torch.cat([g[name].double().flatten() for name in names]) for g in (plain, mixed))
        assert torch.cosine_similarity(a, b, 0) > 0.9, part
        assert 0.9 < b.norm() / a.norm() < 1.1, part


@cpu
@pytest.mark.parametrize(
    'path',
    [
        'detection/cascade-mask-rcnn_lavit-small_fpn_ms-3x_coco',
        'shapes/retinanet_lavit-nano_shapes',
    ],
)
def test_other_detectors_train_validate_and_test(path, shapes, tmp_path, bfloat16_products):
    # torch's own kernels take a minute for a Cascade where there is no bfloat16
    products = bfloat16_products if 'cascade' in path else nullcontext
    cfg = load(f'configs/{path}.py', shapes, tmp_path)
    cfg.model.backbone.arch = 'nano'
    fit_nano(cfg.model)
    cfg.optim_wrapper.type = 'mmlavit.BFloat16OptimWrapper'
    cfg.val_cfg.fp16 = cfg.test_cfg.fp16 = True
    runner, predicted = build_runner(cfg), []
    add_float32_operators(runner, cfg.val_cfg)
    with products():
        runner.train()
        assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
        runner.register_hook(Predictions(predicted))
        runner.test()
    assert predicted[0].pred_instances.bboxes.dtype == torch.float32
    assert not any(module._forward_hooks for module in runner.model.modules())


@cpu
def test_tools_train_and_test_mask_rcnn(shapes, tmp_path, monkeypatch, run):
    """The whole way through both tools, with masks, in the precision that the log states."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    coco = shapes / 'coco'
    options = ['model.backbone.init_cfg=None', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
    options += ['default_hooks.logger.interval=1', 'train_dataloader.batch_size=2']
    for split in ('train', 'val', 'test'):
        options.append(f'{split}_dataloader.dataset.data_root={coco}')
        options += [f'{split}_dataloader.num_workers=0']
        options += [f'{split}_dataloader.persistent_workers=False']
    annotations = coco / 'annotations/instances_val2017.json'
    options += [f'{split}_evaluator.ann_file={annotations}' for split in ('val', 'test')]
    argv = ('--work-dir', str(tmp_path), '--cfg-options', *options)

    log = run(load_tool('train'), str(MASK_RCNN), '--amp', *argv)
    assert 'Autocast runs in bfloat16' in log
    assert 'coco/segm_mAP' in log
    steps = re.findall(r'Epoch\(train\).* grad_norm: (\S+) +loss: (\S+)', log)
    assert len(steps) == 4
    assert all(math.isfinite(float(value)) for step in steps for value in step)

    found = {}
    for name, amp in (('float32', []), ('amp', ['--amp'])):
        forget_runs()
        out = str(tmp_path / f'{name}.pkl')
        log = run(
            load_tool('test'), str(MASK_RCNN), str(tmp_path / 'epoch_2.pth'), '--out', out,
            *amp, *argv,
        )  # fmt: skip
        assert ('Autocast runs in bfloat16' in log) == (name == 'amp')
        found[name] = [image['pred_instances'] for image in predictions(out)]
    assert len(found['amp']) == len(found['float32']) == 2
    for plain, mixed in zip(found['float32'], found['amp'], strict=True):
        assert mixed['scores'].dtype == mixed['bboxes'].dtype == torch.float32
        assert len(mixed['masks']) == len(mixed['scores']) > 0
        assert not torch.equal(mixed['scores'][:5], plain['scores'][:5])
        torch.testing.assert_close(mixed['scores'][:5], plain['scores'][:5], rtol=0, atol=0.02)
