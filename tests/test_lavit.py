"""Invariants of the backbone."""

import re

import pytest
import torch
from closed_formula import closed_formula
from mmengine.utils.dl_utils import is_norm
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlavit.models import LaViT
from mmlavit.models.backbones.arch import ARCHS
from mmlavit.models.layers import LessAttention
from mmlavit.ops import Windows

# depths with two vanilla layers before and two less-attention layers in a stage
DEEP = {
    'channels': (16, 32, 32, 64),
    'depths': (2, 2, 4, 2),
    'va_layers': (1, 1, 2, 1),
    'head_width': 16,
}


def random_transforms(model):
    for layer in model.modules():
        if isinstance(layer, LessAttention):
            torch.nn.init.normal_(layer.theta, std=0.1)
            torch.nn.init.normal_(layer.psi, std=0.1)
    return model


@pytest.mark.parametrize(
    ('given', 'stages'), [(3, (3,)), (-1, (3,)), ((-4, -2), (0, 2)), ([1], (1,))]
)
def test_stages_may_be_counted_from_the_end(given, stages):
    """Those behind the last one are not built."""
    model = LaViT('nano', out_indices=given)
    assert model.out_indices == stages
    assert len(model.stages) == stages[-1] + 1
    channels = [out.shape[1] for out in model(torch.randn(1, 3, 33, 40))]
    assert channels == [32 * 2**i for i in stages]


def test_paths_are_dropped_in_training_alone():
    """With and without gradients; the probability rises linearly from block to block."""
    model = LaViT('tiny', drop_path_rate=0.7)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)], abs=1e-6)
    model, images = LaViT('nano', drop_path_rate=0.9), torch.randn(2, 3, 64, 64)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert not torch.equal(model.train()(images)[-1], model(images)[-1])
            assert torch.equal(model.eval()(images)[-1], model(images)[-1])


@pytest.mark.parametrize(
    'options',
    [{}, {'out_indices': (0, 2)}, {'attention_residual': False}, {'less_attention': False}],
    ids=str,
)
def test_every_parameter_gets_a_gradient(options):
    model = random_transforms(LaViT(DEEP, **options)).train()
    sum(out.sin().sum() for out in model(torch.randn(2, 3, 50, 75))).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 4])
def test_frozen_stages_stay_frozen_through_train(frozen):
    model = LaViT(DEEP, frozen_stages=frozen)
    model.eval().train()
    for name, param in model.named_parameters():
        stage = int(name.split('.')[1]) if name.startswith('stages') else int(name[4])
        is_frozen = stage < frozen or (frozen == 0 and name.startswith('stages.0.embed'))
        assert param.requires_grad != is_frozen, name
    for i, stage in enumerate(model.stages):
        assert stage.training != (i < frozen)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    loss = sum(out.sin().sum() for out in model(torch.randn(2, 3, 64, 64)))
    if trainable:
        loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trainable


@pytest.mark.parametrize('autocast', [True, False])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_types_are_near_float32_and_survive_large_logits(dtype, autocast):
    """Under autocast, also with logits of about 1e4, and as ``model.half()`` makes a model."""
    model, images = random_transforms(LaViT(DEEP)), torch.randn(2, 3, 50, 75)
    expected = model(images)
    if not autocast:
        model, images = model.to(dtype), images.to(dtype)
    for scale in (1, 500) if autocast else (1,):
        for name, param in model.named_parameters():
            param.grad = None
            if name.endswith('qkv.weight'):
                param.data *= scale
        with torch.autocast('cpu', dtype, enabled=autocast):
            outs = model(images)
        sum((out.float() * torch.randn_like(out)).mean() for out in outs).backward()
        assert all(out.isfinite().all() for out in outs)
        assert all(p.grad.isfinite().all() for p in model.parameters())
        if scale == 1:
            for out, wanted in zip(outs, expected, strict=True):
                assert autocast or out.dtype == dtype
                assert (out.float() - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize(('window', 'is_global'), [(7, False), (14, True)])
def test_a_window_as_large_as_the_map_is_global(window, is_global):
    """Whether news of the first token of a 14x14 map reaches the last through attention."""
    stage = random_transforms(LaViT(DEEP, window_size=(7, 7, window, 7))).eval().stages[2]
    for block in stage.blocks:
        torch.nn.init.zeros_(block.ffn.fc2.weight)  # no news through the convolutions
    x, logits = torch.randn(1, 28, 28, 32), torch.zeros(16, 2, 49, 49)
    changed = x.clone()
    changed[:, :2, :2] += 10
    with torch.no_grad():
        before, after = (stage(m, logits, Windows(7, 1, 28, 28))[0] for m in (x, changed))
    assert bool((before - after)[0, -1, -1].any()) == is_global


def test_a_class_activation_map_by_hooks():
    """As CAM tools do it: the last norm in the model gives a map ``(B, C, h, w)``."""
    backbone, head, seen = LaViT(DEEP).eval(), torch.nn.Linear(64, 5), {}

    def keep(module, args, out):
        seen['activation'] = out
        out.register_hook(lambda gradient: seen.update(gradient=gradient))

    [m for m in backbone.modules() if is_norm(m)][-1].register_forward_hook(keep)
    head(backbone(torch.randn(2, 3, 96, 160))[-1].mean((2, 3)))[:, 3].sum().backward()
    assert seen['activation'].shape == seen['gradient'].shape == (2, 64, 3, 5)
    # the head pools: a channel's gradient is its weight, the same at every place
    torch.testing.assert_close(seen['gradient'].mean((2, 3)) * 15, head.weight[3].expand(2, -1))


# the paper's table 1
PUBLISHED = {'tiny': (10.9e6, 1.6e9), 'small': (22.4e6, 3.3e9), 'base': (39.6e6, 6.1e9)}


@pytest.mark.parametrize('name', PUBLISHED)
def test_size_and_cost_match_formula_and_paper(name):
    with torch.device('meta'):
        model, images = LaViT(name, out_indices=(3,)).eval(), torch.empty(1, 3, 224, 224)
        head = torch.nn.Linear(model.arch.channels[-1], 1000)
    # the counter does not know the fused kernel of a CPU
    fused = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), fused, FlopCounterMode(display=False) as counter:
        head(model(images)[0].mean((2, 3)))
    params = sum(p.numel() for m in (model, head) for p in m.parameters())
    macs = counter.get_total_flops() // 2
    parts = closed_formula(ARCHS[name]).values()
    assert (params, macs) == tuple(map(sum, zip(*parts, strict=True)))
    assert (params, macs) == pytest.approx(PUBLISHED[name], rel=0.03)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'arch': 'huge'}, r"arch='huge'.*'nano', 'tiny', 'small', 'base'"),
        ({'arch': 3}, r"arch=3: expected one of \('nano'"),
        ({'arch': {'channels': (8,) * 4}}, r"missing keys \['depths', 'va_layers'\]"),
        ({'arch': DEEP | {'depht': 3}}, r"unknown keys \['depht'\].*'channels', 'depths'"),
        ({'arch': DEEP | {'channels': (16, 32, 40, 64)}}, r"\['channels'\]\[2\]=40.*multiple.*16"),
        ({'arch': DEEP | {'depths': (0, 2, 4, 2)}}, r"\['depths'\]=\(0, 2, 4, 2\).*positive"),
        ({'arch': DEEP | {'va_layers': (3, 1, 2, 1)}}, r"\['va_layers'\]\[0\]=3.*at most.*=2"),
        ({'window_size': (7, 7)}, r'window_size=\(7, 7\).*positive integer or 4'),
        ({'out_indices': -5}, r'out_indices=-5.*from 0 to 3, or from -4 to -1'),
        ({'out_indices': (3, -1)}, r'out_indices=\(3, -1\).*rising'),
        ({'out_indices': '3'}, r"out_indices='3'.*from 0 to 3"),
        ({'drop_path_rate': 1.0}, 'drop_path_rate=1.0.*0 <= rate < 1'),
        ({'frozen_stages': 5}, 'frozen_stages=5.*-1 to 4'),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LaViT(**options)


@pytest.mark.parametrize('shape', [(0, 3, 32, 32), (1, 3, 0, 32), (1, 4, 32, 32), (3, 32, 32)])
def test_batches_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=re.escape(f'images of shape {shape}: expected (B, 3, h')):
        LaViT('nano')(torch.zeros(shape))
