"""Invariants over drawn sizes, windows, archs and batches."""

import math

import pytest
import torch
from attention_definition import attend_by_definition, valid_pairs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from residual_definition import check_residual, residual_windows

from mmlavit.models import LaViT, diagonality_loss
from mmlavit.models.layers import AttentionResidual, LessAttention, VanillaAttention
from mmlavit.ops import Windows

# drawn from a fixed seed: a failure repeats, and a slow machine is no failure
few = settings(
    max_examples=20, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
seeds = st.integers(0, 2**16)
windows = st.tuples(*[st.integers(1, 6)] * 4)
sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))


@st.composite
def archs(draw):
    """Dict archs of at most three heads a stage, with any split into vanilla and less attention."""
    width = draw(st.sampled_from([2, 4]))
    depths = draw(st.tuples(*[st.integers(1, 3)] * 4))
    return dict(
        channels=[width * draw(st.integers(1, 3)) for _ in range(4)],
        depths=depths,
        va_layers=[draw(st.integers(1, depth)) for depth in depths],
        head_width=width,
        ffn_ratio=draw(st.sampled_from([1, 2.5])),
    )


def build(arch, window_size, seed=0, **options):
    """A float64 model, every parameter away from its start value."""
    torch.manual_seed(seed)
    model = LaViT(arch, window_size, **options).double()
    for param in model.parameters():
        param.data += 0.1 * torch.randn_like(param)
    return model


def image_of(batch, size):
    return torch.randn(batch, 3, *size, dtype=torch.float64)


@few
@given(archs(), windows, sizes, st.integers(1, 3), seeds)
@torch.no_grad()
def test_maps_are_contiguous_finite_of_the_ceiled_size_and_apart_from_batch_mates(
    arch, window_size, size, batch, seed
):
    model, images = build(arch, window_size, seed).eval(), image_of(batch, size)
    alone = [model(image[None]) for image in images]
    for i, out in enumerate(model(images)):
        height, width = (math.ceil(side / (4 * 2**i)) for side in size)
        assert out.shape == (batch, arch['channels'][i], height, width)
        assert out.is_contiguous()
        assert out.isfinite().all()
        single = torch.cat([maps[i] for maps in alone])
        torch.testing.assert_close(out, single, rtol=1e-9, atol=1e-9)


@few
@given(archs(), windows, sizes, st.booleans(), st.booleans(), seeds)
def test_every_parameter_is_in_the_graph_and_checkpointing_changes_nothing(
    arch, window_size, size, attention_residual, less_attention, seed
):
    """DDP runs without find_unused_parameters, whatever is switched off; paths are dropped."""
    options = dict(attention_residual=attention_residual, less_attention=less_attention)
    images, results = image_of(2, size), []
    for with_cp in (False, True):
        model = build(arch, window_size, seed, drop_path_rate=0.3, with_cp=with_cp, **options)
        outs = model(images)
        sum(out.square().mul(out.detach().sigmoid()).sum() for out in outs).backward()
        grads = {name: param.grad for name, param in model.named_parameters()}
        assert [name for name, grad in grads.items() if grad is None] == []
        assert all(grad.isfinite().all() for grad in grads.values())
        results.append([*outs, *grads.values()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@few
@given(st.tuples(*[st.integers(1, 7)] * 2), st.tuples(st.integers(1, 5), st.integers(1, 4)))
@example((14, 14), (7, 7))  # the default at 224 in small: windows fit, cells straddle
@example((5, 5), (7, 2))
def test_the_residual_equals_the_whole_map_definition(size, in_and_out_window):
    check_residual(size, in_and_out_window)


@pytest.mark.parametrize(('size', 'sides'), [((6, 5), (3, 3)), ((4, 4), (2, 2))])
def test_gradients_of_the_residual_are_exact(size, sides):
    """Against finite differences in float64, with straddling cells and padding."""
    layer = AttentionResidual(1, 2).double()
    windows = residual_windows(size, sides)
    count, n = windows[0].rows * windows[0].cols, sides[0] ** 2
    logits = torch.randn(count, 1, n, n, dtype=torch.float64)

    def residual(value, *parameters):
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(layer, named, (value, *windows))

    inputs = [t.detach().clone().requires_grad_() for t in (logits, *layer.parameters())]
    assert torch.autograd.gradcheck(residual, inputs, fast_mode=True)


def test_a_residual_of_half_precision_logits_near_the_limit_stays_finite():
    windows = residual_windows((14, 14), (7, 7))
    with torch.autocast('cpu', torch.float16):
        logits = 6e4 * torch.sign(torch.randn(4, 2, 49, 49)).half()
        out = AttentionResidual(2, 2)(logits, *windows)
    assert out.isfinite().all()


@st.composite
def cases(draw):
    """Heads, and a map of one or two images with windows, most of which reach over its border."""
    windows = Windows(*(draw(st.integers(1, most)) for most in (4, 2, 9, 9)))
    return draw(st.integers(1, 3)), windows


def tensors_of(heads, windows):
    """A map and the logits of its windows."""
    groups, n = windows.batch * windows.rows * windows.cols, windows.side**2
    x = torch.randn(windows.batch, windows.height, windows.width, 4 * heads, dtype=torch.float64)
    return x, torch.randn(groups, heads, n, n, dtype=torch.float64)


def less_attention(heads, windows, scale=0.1):
    layer = LessAttention(4 * heads, windows.side).double()
    torch.nn.init.normal_(layer.theta, std=scale)
    torch.nn.init.normal_(layer.psi, std=scale)
    return layer


@pytest.mark.parametrize('kind', ['LA', 'VA', 'guided VA', 'fused VA', 'guided fused VA'])
@few
@given(cases(), seeds)
def test_attention_is_that_of_the_definition_whatever_stands_at_padding(kind, case, seed):
    """Map, logits of valid pairs, and what both hand back to all that they depend on."""
    (heads, windows), _ = case, torch.manual_seed(seed)
    x, logits = tensors_of(heads, windows)
    valid = windows.valid(x)
    if valid is not None:
        logits = logits.masked_fill(valid * valid.mT == 0, 1e6)
    layer = less_attention(heads, windows)
    if kind != 'LA':
        layer = VanillaAttention(4 * heads, heads, 'fused' not in kind).double()
        logits = logits if 'guided' in kind else None
    leaves = [t.requires_grad_() for t in (x, logits, *layer.parameters()) if t is not None]
    out, new = layer(x, logits, windows)
    assert (new is None) == ('fused' in kind)
    pairs = [] if new is None else valid_pairs(new, windows)
    expected, expected_pairs = attend_by_definition(layer, x, logits, windows)
    found = []
    for o, p in ((out, pairs), (expected, expected_pairs[: len(pairs)])):
        loss = o.sin().sum() + sum(part.cos().sum() for part in p)
        found.append([o, *p, *torch.autograd.grad(loss, leaves)])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


@few
@given(cases(), seeds, st.sampled_from(['hinge', 'linear']))
def test_the_loss_does_not_see_padding(case, seed, form):
    """It is the mean over windows of what each gives on its tokens alone."""
    (heads, windows), _ = case, torch.manual_seed(seed)
    logits = tensors_of(heads, windows)[1]
    alone = [diagonality_loss(pairs[None], form=form) for pairs in valid_pairs(logits, windows)]
    valid = windows.valid(logits)
    if valid is not None:
        logits = logits.masked_fill(valid * valid.mT == 0, -1e6)
    found = diagonality_loss(logits, windows, form)
    torch.testing.assert_close(found, torch.stack(alone).mean(), rtol=1e-9, atol=1e-10)


@few
@given(
    cases(), st.sampled_from([torch.float16, torch.bfloat16]), st.floats(0, 0.5),
    st.sampled_from([1.0, 1e4]), seeds,
)  # fmt: skip
def test_twelve_layers_of_large_logits_stay_finite(case, dtype, scale, size, seed):
    (heads, windows), _ = case, torch.manual_seed(seed)
    x, logits = (t.float() for t in tensors_of(heads, windows))
    vanilla = VanillaAttention(4 * heads, heads, keep_logits=True)
    layers = [less_attention(heads, windows, scale).float() for _ in range(12)]
    with torch.autocast('cpu', dtype):
        out, logits = vanilla(size * x, 1e4 * logits, windows)
        for layer in layers:
            assert logits.isfinite().all()
            out, logits = layer(out, logits, windows)
            assert out.isfinite().all()
        loss = diagonality_loss(logits, windows) + out.float().square().mean()
    loss.backward()
    for layer in (vanilla, *layers):
        assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
