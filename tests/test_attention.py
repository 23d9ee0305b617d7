"""Invariants of vanilla and less attention."""

import pytest
import torch

from mmlavit.models.layers import FusedVanillaAttention, LessAttention, VanillaAttention

DIM, HEADS, WINDOW = 32, 4, 3
N = WINDOW**2


def less_attention(dtype=torch.float32, scale=0.1):
    layer = LessAttention(DIM, HEADS, WINDOW).to(dtype)
    with torch.no_grad():
        layer.theta.normal_(std=scale)
        layer.psi.normal_(std=scale)
    return layer


def mask_of(groups, real):
    return torch.arange(N).expand(groups, N) < torch.as_tensor(real)[:, None]


def tokens(groups, dtype=torch.float32):
    """As many maps as groups, each of one window."""
    return torch.randn(groups, WINDOW, WINDOW, DIM, dtype=dtype)


def test_less_attention_is_psi_a_theta_transposed():
    layer = less_attention()
    logits = torch.randn(5, HEADS, N, N)
    _, out = layer(tokens(5), logits)
    eye = torch.eye(N, dtype=torch.float64)
    psi, theta = eye + layer.psi.double(), eye + layer.theta.double()
    expected = torch.einsum('ik,ghkl,jl->ghij', psi, logits.double(), theta)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_identity_transforms_reproduce_the_previous_map_exactly():
    x = tokens(3)
    _, logits = VanillaAttention(DIM, HEADS, WINDOW)(x)
    _, reused = LessAttention(DIM, HEADS, WINDOW)(x, logits)
    assert torch.equal(reused, logits)


@pytest.mark.parametrize('masked', [False, True])
def test_output_is_softmax_times_values(masked):
    """Both kinds end in proj(softmax(A) V), here head by head in float64."""
    x = tokens(2, torch.float64)
    mask = mask_of(2, [N, 5]) if masked else None
    vanilla = VanillaAttention(DIM, HEADS, WINDOW).double()
    out, logits = vanilla(x, mask=mask)
    less = less_attention(torch.float64)
    less_out, less_logits = less(x, logits, mask)
    values = {vanilla: vanilla.qkv(x)[..., 2 * DIM :], less: less.v(x)}
    values = {layer: value.flatten(1, 2) for layer, value in values.items()}
    for layer, got, scores in ((vanilla, out, logits), (less, less_out, less_logits)):
        for g in range(2):
            real = int(mask[g].sum()) if masked else N
            heads = []
            for h in range(HEADS):
                attn = scores[g, h, :real, :real].softmax(-1)
                heads.append(attn @ values[layer][g, :real, 8 * h : 8 * (h + 1)])
            expected = layer.proj(torch.cat(heads, -1))
            torch.testing.assert_close(
                got.flatten(1, 2)[g, :real], expected, rtol=1e-10, atol=1e-10
            )


def test_vanilla_logits_are_scaled_products_plus_the_residual():
    layer = VanillaAttention(DIM, HEADS, WINDOW).double()
    x = tokens(2, torch.float64)
    residual = torch.randn(2, HEADS, N, N, dtype=torch.float64)
    q, k, _ = layer.qkv(x).view(2, N, 3, HEADS, DIM // HEADS).unbind(2)
    expected = torch.einsum('gihd,gjhd->ghij', q, k) / (DIM // HEADS) ** 0.5 + residual
    torch.testing.assert_close(layer(x, residual)[1], expected)


def test_padding_never_changes_a_real_token():
    """A masked window equals the layer on its real tokens alone, whatever the padding holds."""
    mask = mask_of(2, [4, 4])  # of a 3x3 window, read as the four tokens of a 2x2 one
    x, logits = tokens(2), torch.randn(2, HEADS, N, N)
    loud, loud_logits = x.clone(), logits.clone()
    loud.flatten(1, 2)[:, 4:] = 1e3
    loud_logits[..., 4:, :] = 1e3
    loud_logits[..., 4:] = -1e3
    few = x.flatten(1, 2)[:, :4].view(2, 2, 2, DIM)

    vanilla, small = VanillaAttention(DIM, HEADS, WINDOW), VanillaAttention(DIM, HEADS, 2)
    small.load_state_dict(vanilla.state_dict())
    out, scores = vanilla(loud, mask=mask)
    alone, alone_scores = small(few)
    torch.testing.assert_close(out.flatten(1, 2)[:, :4], alone.flatten(1, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[..., :4, :4], alone_scores, rtol=1e-5, atol=1e-5)

    less, small = less_attention(), LessAttention(DIM, HEADS, 2)
    state = less.state_dict()
    small.load_state_dict(state | {k: state[k][:4, :4] for k in ('theta', 'psi')})
    out, scores = less(loud, loud_logits, mask)
    alone, alone_scores = small(few, logits[..., :4, :4])
    torch.testing.assert_close(out.flatten(1, 2)[:, :4], alone.flatten(1, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[..., :4, :4], alone_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('guided', [False, True])
def test_fused_attention_is_vanilla_attention_without_logits(masked, guided):
    x = tokens(2, torch.float64).requires_grad_()
    mask = mask_of(2, [N, 5]) if masked else None
    residual = torch.randn(2, HEADS, N, N, dtype=torch.float64) if guided else None
    plain = VanillaAttention(DIM, HEADS, WINDOW).double()
    fused = FusedVanillaAttention(DIM, HEADS, WINDOW).double()
    fused.load_state_dict(plain.state_dict())
    grads = []
    for layer in (plain, fused):
        out, logits = layer(x, residual, mask)
        assert (logits is None) == (layer is fused)
        (out.flatten(1, 2)[:, :5] ** 2).sum().backward()
        grads.append((out.flatten(1, 2)[:, :5], layer.qkv.weight.grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('masked', [False, True])
def test_less_attention_has_the_gradients_of_its_definition(masked):
    """Written out with autograd on every step, in float64."""
    layer = less_attention(torch.float64)
    x, logits = tokens(3, torch.float64), torch.randn(3, HEADS, N, N, dtype=torch.float64)
    mask = mask_of(3, [N, 5, 0]) if masked else torch.ones(3, N, dtype=torch.bool)
    pairs = mask[:, None, :, None] & mask[:, None, None, :]

    def plain(x, logits):
        v = layer.v(x).view(3, N, HEADS, -1).transpose(1, 2)
        eye = torch.eye(N, dtype=torch.float64)
        new = (eye + layer.psi) @ (logits * pairs) @ (eye + layer.theta).T
        attn = new.masked_fill(~mask[:, None, None], -1e300).softmax(-1)
        return layer.proj((attn @ v).transpose(1, 2).reshape(x.shape)), new

    results = []
    for run in (plain, lambda *args: layer(*args, mask if masked else None)):
        layer.zero_grad()
        inputs = [t.clone().requires_grad_() for t in (x, logits)]
        out, new = run(*inputs)
        # both outputs carry gradients; padded queries and pairs mean nothing
        (out.flatten(1, 2) * mask[..., None]).sin().sum().backward(retain_graph=True)
        (new * pairs).cos().sum().backward()
        results.append([t.grad for t in (*inputs, *layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_a_group_without_real_tokens_stays_finite():
    mask = mask_of(2, [N, 0])
    x = tokens(2)
    out, logits = VanillaAttention(DIM, HEADS, WINDOW)(x, mask=mask)
    assert out.isfinite().all()
    assert less_attention()(x, logits, mask)[0].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_stays_finite_at_large_logits(dtype):
    """Twelve layers that each amplify, from logits of 1e4 up: forward and backward are finite."""
    x = tokens(2)
    logits = 1e4 * torch.randn(2, HEADS, N, N)
    vanilla = VanillaAttention(DIM, HEADS, WINDOW)
    mask = mask_of(2, [N, 5])
    with torch.autocast('cpu', dtype):
        x, logits = vanilla(100 * x, logits, mask)
        for _ in range(12):
            x, logits = less_attention(scale=0.5)(x, logits, mask)
            assert x.isfinite().all()
            assert logits.isfinite().all()
    x.float().square().sum().backward()
    assert vanilla.qkv.weight.grad.isfinite().all()


@pytest.mark.parametrize('kind', [VanillaAttention, LessAttention])
def test_heads_must_divide_dim_and_windows_hold_a_token(kind):
    for heads in (0, -1, 5):
        with pytest.raises(ValueError, match=f'num_heads={heads}.*dim=32'):
            kind(DIM, heads, WINDOW)
    with pytest.raises(ValueError, match='window=0'):
        kind(DIM, HEADS, 0)
