"""The dense path: transfer by value, layouts, odd sizes and training options."""

import math

import pytest
import torch
import torchvision
from conftest import ROOT
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from small_configs import load

from mmlavit.cli.launch import build_runner
from mmlavit.models import LaViT
from mmlavit.models.layers import resize_transform

CONFIGS = {
    'mmdet': 'configs/shapes/mask-rcnn_lavit-nano_shapes.py',
    'mmseg': 'configs/shapes/upernet_lavit-nano_shapes.py',
}
dense = pytest.mark.parametrize('toolbox', CONFIGS)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A checkpoint as classification leaves it, every tensor away from its start value."""
    backbone = LaViT('nano', out_indices=(3,))
    for param in backbone.parameters():
        param.data += 0.01 * torch.randn_like(param)
    state = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
    path = tmp_path_factory.mktemp('classifier') / 'cls.pth'
    torch.save({'meta': {}, 'state_dict': state | {'head.fc.weight': torch.zeros(3, 256)}}, path)
    return path, backbone.state_dict()


@pytest.mark.parametrize(('toolbox', 'window_size'), [('mmdet', 5), ('mmseg', 7)])
def test_the_running_model_starts_from_the_checkpoint(
    toolbox, window_size, classifier, shapes, tmp_path
):
    path, state = classifier
    cfg = load(CONFIGS[toolbox], shapes, tmp_path)
    cfg.model.backbone.update(
        window_size=window_size,
        init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.'),
    )
    cfg.optim_wrapper.optimizer.update(lr=0.0)  # what trains is what was loaded
    runner = build_runner(cfg)
    runner.train()
    running = runner.model.backbone.state_dict()
    for name, value in state.items():
        if value.shape != running[name].shape:
            value = resize_transform(value, window_size**2)
        torch.testing.assert_close(running[name], value, rtol=0, atol=0)


@dense
def test_a_frozen_backbone_trains_with_the_diagonality_loss(toolbox, shapes, tmp_path):
    """And with checkpointing: what is frozen stays, what is not learns."""
    cfg = load(CONFIGS[toolbox], shapes, tmp_path)
    cfg.model.backbone.update(frozen_stages=2, with_cp=True)
    cfg.custom_hooks = [dict(type='mmlavit.DiagonalityLossHook')]
    runner = build_runner(cfg)
    before = {k: v.clone() for k, v in runner.model.backbone.state_dict().items()}
    runner.train()
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
    assert runner.message_hub.get_scalar('train/loss_dp').current() > 0
    for name, value in runner.model.backbone.state_dict().items():
        if name.startswith(('stages.0.', 'stages.1.')):
            assert torch.equal(value, before[name]), name
    name = 'stages.2.embed.proj.weight'
    assert not torch.equal(runner.model.backbone.get_parameter(name), before[name])


def test_roi_align_reads_real_fpn_outputs_as_torchvision_does():
    """mmcv's RoIAlign reads raw memory: maps that are not contiguous NCHW come out as garbage."""
    cfg = Config.fromfile(ROOT / CONFIGS['mmdet'])
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        levels = model.neck(model.backbone(torch.randn(2, 3, 96, 160)))
    boxes = torch.tensor([[0, 3.0, 5, 60, 70], [1, 20, 10, 150, 90]])
    for level, layer in zip(levels, model.roi_head.bbox_roi_extractor.roi_layers, strict=False):
        expected = torchvision.ops.roi_align(
            level.contiguous(), boxes, (7, 7), layer.spatial_scale, layer.sampling_ratio,
            aligned=layer.aligned,
        )  # fmt: skip
        torch.testing.assert_close(layer(level, boxes), expected, rtol=1e-4, atol=1e-4)


def test_another_detector_uses_every_parameter(tmp_path):
    """The config of docs/detection.md: DDP stops at a parameter without a gradient."""
    page = (ROOT / 'docs/detection.md').read_text().partition('## Another detector')[2]
    path = tmp_path / 'another.py'
    path.write_text(page.partition('```python\n')[2].partition('```')[0])
    cfg = Config.fromfile(path)
    channels = {64: 32, 128: 64, 320: 128, 640: 256}  # of small and of nano
    cfg.model.backbone.update(arch='nano', init_cfg=None)
    cfg.model.neck.in_channels = [channels[width] for width in cfg.model.neck.in_channels]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).train()
        data = model.data_preprocessor(demo_mm_inputs(2, [[3, 128, 96]] * 2, num_classes=80), True)
        losses = model(**data, mode='loss')
    sum(losses.values()).backward()
    assert [name for name, p in model.backbone.named_parameters() if p.grad is None] == []


@dense
def test_odd_and_very_wide_images_train_and_test(toolbox, shapes, tmp_path):
    """Also where SyncBN is asked for, which no CPU has."""
    cfg = load(CONFIGS[toolbox], shapes, tmp_path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = 1
        loader.dataset.indices = 1
        pipeline = loader.dataset.pipeline
        pipeline[:] = [step for step in pipeline if step['type'] != 'Resize']
        # in training the annotations are resized too, in validation they stay as they are
        position = 2 if loader is cfg.train_dataloader else 1
        pipeline.insert(position, dict(type='Resize', scale=(401, 33), keep_ratio=False))
    if toolbox == 'mmseg':
        cfg.model.data_preprocessor.update(size=None, size_divisor=1)
        cfg.model.data_preprocessor.test_cfg = dict(size_divisor=1)
        # batch statistics of one image: the coarsest pooling leaves a single value a channel
        cfg.model.decode_head.norm_cfg = dict(type='GN', num_groups=8)
        cfg.model.auxiliary_head.norm_cfg = dict(type='SyncBN')
    else:
        cfg.model.neck.norm_cfg = dict(type='SyncBN')
    runner = build_runner(cfg)
    runner.train()
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
    norms = [type(m) for m in runner.model.modules() if 'BatchNorm' in type(m).__name__]
    assert norms and torch.nn.SyncBatchNorm not in norms
