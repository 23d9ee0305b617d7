"""Invariants over drawn sizes, windows, archs, batches and masks."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from residual_definition import check_residual

from mmlavit.models import LaViT, LessAttention, VanillaAttention, diagonality_loss
from mmlavit.models.layers.attention import FusedVanillaAttention

# drawn from a fixed seed: a failure repeats, and a slow machine is no failure
few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
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
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn_like(param))
    return model


def image_of(batch, size):
    return torch.randn(batch, 3, *size, dtype=torch.float64)


@few
@given(archs(), windows, sizes, st.integers(1, 3), seeds)
def test_maps_are_contiguous_finite_of_the_ceiled_size_and_apart_from_batch_mates(
    arch, window_size, size, batch, seed
):
    model = build(arch, window_size, seed).eval()
    images = image_of(batch, size)
    with torch.no_grad():
        together = model(images)
        alone = [model(image[None]) for image in images]
    for i, out in enumerate(together):
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
    """DDP runs without find_unused_parameters, whatever is switched off."""
    options = dict(attention_residual=attention_residual, less_attention=less_attention)
    plain = build(arch, window_size, seed, **options)
    saving = build(arch, window_size, seed, **options, with_cp=True)
    images, results = image_of(2, size), []
    for model in (plain, saving):
        outs = model(images)
        sum(out.square().mul(out.detach().sigmoid()).sum() for out in outs).backward()
        grads = {name: param.grad for name, param in model.named_parameters()}
        assert [name for name, grad in grads.items() if grad is None] == []
        assert all(grad.isfinite().all() for grad in grads.values())
        results.append([*outs, *grads.values()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@few
@given(archs(), windows, windows, sizes, seeds)
def test_a_state_dict_fits_every_window(arch, old, new, size, seed):
    """All but the transforms arrive as they are, and the same window gives the same maps."""
    source, image = build(arch, old, seed).eval(), image_of(1, size)
    state = source.state_dict()
    target, same = LaViT(arch, new).double().eval(), LaViT(arch, old).double().eval()
    target.load_state_dict({key: value.clone() for key, value in state.items()})
    same.load_state_dict({key: value.clone() for key, value in state.items()})
    for key, value in target.state_dict().items():
        if value.shape == state[key].shape:
            assert torch.equal(value, state[key]), key
        else:
            assert key.endswith(('theta', 'psi'))
            assert value.isfinite().all()
    with torch.no_grad():
        assert all(out.isfinite().all() for out in target(image))
        for a, b in zip(source(image), same(image), strict=True):
            assert torch.equal(a, b)


@few
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)), st.tuples(st.integers(1, 5), st.integers(1, 4))
)
def test_the_residual_equals_the_whole_map_definition(size, in_and_out_window):
    check_residual(size, in_and_out_window)


@st.composite
def groups(draw):
    """Heads, window, and a mask ``(groups, N)`` with a real token in each group."""
    window = draw(st.integers(1, 3))
    rows = st.lists(st.booleans(), min_size=window**2, max_size=window**2).filter(any)
    mask = draw(st.lists(rows, min_size=1, max_size=3))
    return draw(st.integers(1, 3)), window, torch.tensor(mask)


def map_of(heads, window, mask):
    """Images of one window each, so that their tokens are the groups of the mask in order."""
    return torch.randn(len(mask), window, window, 4 * heads, dtype=torch.float64)


def scores_of(heads, mask):
    return torch.randn(len(mask), heads, *[mask.shape[1]] * 2, dtype=torch.float64)


def less_attention(heads, window, scale=0.1):
    layer = LessAttention(4 * heads, heads, window).double()
    torch.nn.init.normal_(layer.theta, std=scale)
    torch.nn.init.normal_(layer.psi, std=scale)
    return layer


@few
@given(groups(), seeds)
def test_less_attention_is_psi_a_theta_transposed(case, seed):
    """Of the real tokens' scores alone; with identity transforms they are reused as they are."""
    (heads, window, mask), _ = case, torch.manual_seed(seed)
    x, logits = map_of(heads, window, mask), scores_of(heads, mask)
    pairs = (mask[:, None, :, None] & mask[:, None, None, :]).expand_as(logits)
    layer = less_attention(heads, window)
    eye = torch.eye(window**2, dtype=torch.float64)
    expected = (eye + layer.psi) @ (logits * pairs) @ (eye + layer.theta).mT
    got = layer(x, logits, mask)[1]
    torch.testing.assert_close(got[pairs], expected[pairs], rtol=1e-10, atol=1e-10)
    reused = less_attention(heads, window, scale=0)(x, logits, mask)[1]
    assert torch.equal(reused[pairs], logits[pairs])


@few
@given(groups(), seeds)
def test_padding_does_not_leak(case, seed):
    """Whatever padded tokens hold, real tokens, their scores and the loss stay as they are."""
    (heads, window, mask), _ = case, torch.manual_seed(seed)
    x, tokens = map_of(heads, window, mask), mask.view(-1, window, window)
    loud = x.masked_fill(~tokens[..., None], 1e6)
    vanilla = VanillaAttention(4 * heads, heads, window).double()
    fused = FusedVanillaAttention(4 * heads, heads, window).double()
    fused.load_state_dict(vanilla.state_dict())
    less = less_attention(heads, window)
    pairs = (mask[:, None, :, None] & mask[:, None, None, :]).expand(-1, heads, -1, -1)
    results = []
    for image, garbage in ((x, 0.0), (loud, -1e6)):
        out, logits = vanilla(image, mask=mask)
        torch.testing.assert_close(
            fused(image, logits, mask)[0][tokens],
            vanilla(image, logits, mask)[0][tokens],
            rtol=1e-10,
            atol=1e-10,
        )
        second, after = less(image, logits.masked_fill(~pairs, garbage), mask)
        loss = diagonality_loss(after.masked_fill(~pairs, garbage), mask)
        results.append([out[tokens], logits[pairs], second[tokens], after[pairs], loss])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@few
@given(
    groups(), st.sampled_from([torch.float16, torch.bfloat16]), st.floats(0, 0.5),
    st.sampled_from([1.0, 1e4]), seeds,
)  # fmt: skip
def test_twelve_layers_of_large_logits_stay_finite(case, dtype, scale, size, seed):
    (heads, window, mask), _ = case, torch.manual_seed(seed)
    x, logits = size * map_of(heads, window, mask).float(), 1e4 * scores_of(heads, mask).float()
    vanilla = VanillaAttention(4 * heads, heads, window)
    layers = [less_attention(heads, window, scale).float() for _ in range(12)]
    with torch.autocast('cpu', dtype):
        out, logits = vanilla(x, logits, mask)
        for layer in layers:
            assert logits.isfinite().all()
            out, logits = layer(out, logits, mask)
            assert out.isfinite().all()
        loss = diagonality_loss(logits, mask) + out.float().square().mean()
    loss.backward()
    for layer in (vanilla, *layers):
        assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_backbone_of_twelve_less_attention_layers_survives_loud_images(dtype):
    arch = dict(channels=[8] * 4, depths=[1, 1, 13, 1], va_layers=[1] * 4, head_width=4)
    model = build(arch, 4).float()
    with torch.autocast('cpu', dtype):
        outs = model(1e4 * torch.randn(2, 3, 70, 90))
    assert all(out.isfinite().all() for out in outs)
    sum(out.float().square().mean() for out in outs).backward()
    assert all(param.grad.isfinite().all() for param in model.parameters())
