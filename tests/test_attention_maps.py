"""Attention maps: that they are those of the pass, and that a model does not notice."""

import pytest
import torch
import torch.distributed as dist
from attention_definition import attend_by_definition, windows_of
from mmengine.model import BaseModel, MMDistributedDataParallel
from small_models import DEPTHS, make_backbone

from mmlavit.errors import UserError
from mmlavit.models import trace_layers
from mmlavit.visualization.attention_maps import attention_of, find_backbone

PLACES = [(stage, i + 1) for stage, depth in enumerate(DEPTHS, 1) for i in range(depth)]


@pytest.mark.parametrize('size', [(90, 124), (224, 224)])
def test_maps_are_the_softmax_of_the_logits_of_the_pass(size):
    """In every layer, window and head, also of layers that keep no logits; padding apart."""
    backbone, inputs = make_backbone(), {}
    attentions = [block.attn for stage in backbone.stages for block in stage.blocks]
    for module in attentions:
        module.register_forward_pre_hook(lambda module, args: inputs.update({module: args}))
    with torch.no_grad():
        _, layers = backbone.forward_trace(torch.randn(2, 3, *size))
        assert [(a.stage, a.layer) for a in layers] == PLACES
        assert ''.join(a.kind[0] for a in layers) == 'VVVLVLV'
        for module, layer in zip(attentions, layers, strict=True):
            windows = inputs[module][2]
            assert layer.windows == windows
            _, expected = attend_by_definition(module, *inputs[module])
            for found, pairs, window in zip(
                attention_of(layer), expected, windows_of(windows), strict=True
            ):
                inside = found[:, window.valid][:, :, window.valid]
                torch.testing.assert_close(inside, pairs.softmax(-1), atol=1e-5, rtol=1e-3)
                torch.testing.assert_close(found.sum(), inside.sum())


class TinyModel(BaseModel):
    """The least model that mmengine trains."""

    def __init__(self, **options):
        super().__init__()
        self.backbone = make_backbone(**options).train()

    def forward(self, inputs, mode='tensor'):
        return {'loss': sum(out.square().mean() for out in self.backbone(inputs))}


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('distributed', [False, True])
def test_training_is_untouched(with_cp, distributed):
    """Gradients under autocast are those without a trace; recomputed layers do not count again."""
    model: torch.nn.Module = TinyModel(with_cp=with_cp, out_indices=(3,))
    if distributed:
        dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
        model = MMDistributedDataParallel(model)
    try:
        image, grads, seen = torch.randn(2, 3, 90, 124), [], []
        for attach in (False, True):
            if attach:
                trace_layers(find_backbone(model), seen.append)
            model.zero_grad()
            with torch.autocast('cpu', torch.bfloat16):
                loss = model(image, mode='loss')['loss']
            loss.backward()
            grads.append([p.grad.clone() for p in model.parameters()])
    finally:
        if distributed:
            dist.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert [(a.stage, a.layer) for a in seen] == PLACES
    maps = [attention_of(layer) for layer in seen]
    assert all(m.dtype == torch.float32 and not m.requires_grad for m in maps)


def test_a_pass_that_fails_hands_nothing_over():
    """The next one is complete, and no hook of a trace stays behind."""
    backbone, seen, image = make_backbone(), [], torch.randn(1, 3, 64, 64)
    handles = trace_layers(backbone, seen.append, kinds=('LA',))
    fail = backbone.norm3.register_forward_pre_hook(lambda module, args: {}['no such key'])
    for run in (backbone, backbone.forward_trace):
        with pytest.raises(KeyError):
            run(image)
    assert seen == []
    fail.remove()
    backbone(image)
    assert [(a.stage, a.layer) for a in seen] == [(2, 3), (3, 2)]
    for handle in handles:
        handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


def test_a_model_without_the_backbone_is_refused():
    """The message names the model."""
    with pytest.raises(UserError, match='Linear has no mmlavit.LaViT'):
        find_backbone(torch.nn.Linear(1, 1))
