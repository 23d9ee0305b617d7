"""Attention maps: how they are collected, and that a model does not notice."""

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel, MMDistributedDataParallel
from small_models import DEPTHS, make_backbone

from mmlavit.errors import UserError
from mmlavit.models import LaViT, LessAttention, VanillaAttention
from mmlavit.models.layers import FusedVanillaAttention, tiles
from mmlavit.visualization.attention_maps import (
    attach_attention_maps,
    collect_attention,
    find_backbone,
)


def attentions_of(backbone: LaViT) -> list[torch.nn.Module]:
    return [block.attn for stage in backbone.stages for block in stage.blocks]


def expected_map(module, x, start, group, window):
    """Attention of one window between its real tokens, ``(heads, n, n)``, from the definition."""
    cols, rows = -(-x.shape[2] // window), -(-x.shape[1] // window)
    image, cell = divmod(group, rows * cols)
    top, left = cell // cols * window, cell % cols * window
    tokens = x[image, top : top + window, left : left + window]
    height, width, dim = tokens.shape
    real = [i * window + j for i in range(height) for j in range(width)]
    scores = None if start is None else start[group][:, real][:, :, real]
    if isinstance(module, LessAttention):
        theta, psi = ((torch.eye(len(t)) + t)[real][:, real] for t in (module.theta, module.psi))
        return real, (psi @ scores @ theta.T).softmax(-1)
    q, k, _ = module.qkv(tokens.reshape(-1, dim)).chunk(3, dim=1)
    heads = [h.split(16, dim=1) for h in (q, k)]
    own = torch.stack([a @ b.T / 4 for a, b in zip(*heads, strict=True)])
    return real, (own if scores is None else own + scores).softmax(-1)


@pytest.mark.parametrize('tile_bytes', [tiles.TILE_BYTES, 2**13])
def test_collected_attention_is_the_softmax_of_the_scores(monkeypatch, tile_bytes):
    """In every layer, window and head, padded tokens apart, however the map is cut into tiles."""
    backbone, inputs = make_backbone(), {}
    image = torch.randn(2, 3, 90, 124)
    handles = [
        module.register_forward_pre_hook(lambda m, args: inputs.update({m: args}))
        for module in attentions_of(backbone)
    ]
    with torch.enable_grad():  # in one piece
        backbone(image)
    for handle in handles:
        handle.remove()
    monkeypatch.setattr(tiles, 'TILE_BYTES', tile_bytes)
    layers = collect_attention(backbone, image)
    places = [(stage, i + 1) for stage, depth in enumerate(DEPTHS, 1) for i in range(depth)]
    assert [(a.stage, a.layer) for a in layers] == places
    assert ''.join(a.kind[0] for a in layers) == 'VVVLVLV'
    for module, layer in zip(attentions_of(backbone), layers, strict=True):
        x, start, *_ = inputs[module]
        assert layer.size == tuple(x.shape[1:3])
        assert layer.window == 7
        for group, found in enumerate(layer.attention):
            real, expected = expected_map(module, x, start, group, 7)
            torch.testing.assert_close(found[:, real][:, :, real], expected, atol=1e-5, rtol=1e-3)
            padded = [i for i in range(49) if i not in real]
            assert not found[:, real][:, :, padded].any()
            assert layer.mask[group].nonzero().flatten().tolist() == real


@pytest.mark.parametrize('size', [(64, 64), (224, 224)])
def test_collecting_leaves_the_backbone_as_it_was(size):
    """Outputs are the same with and without, and no hook stays behind, also after an error."""
    backbone, image = make_backbone(), torch.randn(1, 3, *size)
    with torch.no_grad():
        before = backbone(image)
        handles = attach_attention_maps(backbone, lambda layer: None)
        during = backbone(image)
    for handle in handles:
        handle.remove()
    for a, b in zip(before, during, strict=True):
        # where windows do not cover the map, hooks see whole ones, with padding
        tolerance = 0 if size == (224, 224) else 1e-5
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    with pytest.raises(RuntimeError):
        collect_attention(backbone, image.double())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


class TinyModel(BaseModel):
    """The least model that mmengine trains."""

    def __init__(self, **options):
        super().__init__()
        self.backbone = make_backbone(**options).train()

    def forward(self, inputs, mode='tensor'):
        return {'loss': sum(out.square().mean() for out in self.backbone(inputs))}


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('distributed', [False, True])
def test_training_is_untouched(with_cp, distributed, monkeypatch):
    """Gradients under autocast are those without hooks; recomputed layers do not count again."""
    computed, scores = [], VanillaAttention.scores
    monkeypatch.setattr(
        VanillaAttention, 'scores', lambda self, *args: computed.append(self) or scores(self, *args)
    )
    model: torch.nn.Module = TinyModel(with_cp=with_cp, out_indices=(3,))
    if distributed:
        dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
        model = MMDistributedDataParallel(model)
    try:
        image, grads, seen = torch.randn(2, 3, 224, 224), [], []
        for attach in (False, True):
            if attach:
                attach_attention_maps(find_backbone(model), seen.append)
            model.zero_grad()
            with torch.autocast('cpu', torch.bfloat16):
                loss = model(image, mode='loss')['loss']
            loss.backward()
            grads.append([p.grad.clone() for p in model.parameters()])
    finally:
        if distributed:
            dist.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert [(a.stage, a.layer) for a in seen] == [
        (stage, i + 1) for stage, depth in enumerate(DEPTHS, 1) for i in range(depth)
    ]
    fused = [m for m in model.modules() if isinstance(m, FusedVanillaAttention)]
    assert computed == fused  # those of layers that hand no scores on, once each
    assert all(a.attention.dtype == torch.float32 for a in seen)
    assert not any(a.attention.requires_grad for a in seen)


def test_gradients_where_windows_do_not_cover_the_map():
    """Hooks see whole windows there; without autocast, only rounding may differ."""
    model, image, grads = TinyModel(out_indices=(3,)), torch.randn(2, 3, 64, 96), []
    for attach in (False, True):
        if attach:
            attach_attention_maps(find_backbone(model), lambda layer: None)
        model.zero_grad()
        model(image, mode='loss')['loss'].backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_model_without_the_backbone_is_refused():
    """The message names the model."""
    with pytest.raises(UserError, match='Linear has no mmlavit.LaViT'):
        find_backbone(torch.nn.Linear(1, 1))
