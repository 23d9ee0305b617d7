"""Invariants of vanilla and less attention."""

import pytest
import torch

from mmlavit.models.layers import LessAttention, VanillaAttention

DIM, HEADS, N = 32, 4, 9


def less_attention(dtype=torch.float32, scale=0.1):
    layer = LessAttention(DIM, HEADS, N).to(dtype)
    with torch.no_grad():
        layer.theta.normal_(std=scale)
        layer.psi.normal_(std=scale)
    return layer


def mask_of(groups, real):
    return torch.arange(N).expand(groups, N) < torch.as_tensor(real)[:, None]


def test_less_attention_is_psi_a_theta_transposed():
    layer = less_attention()
    logits = torch.randn(5, HEADS, N, N)
    _, out = layer(torch.randn(5, N, DIM), logits)
    eye = torch.eye(N, dtype=torch.float64)
    psi, theta = eye + layer.psi.double(), eye + layer.theta.double()
    expected = torch.einsum('ik,ghkl,jl->ghij', psi, logits.double(), theta)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_identity_transforms_reproduce_the_previous_map_exactly():
    x = torch.randn(3, N, DIM)
    _, logits = VanillaAttention(DIM, HEADS)(x)
    _, reused = LessAttention(DIM, HEADS, N)(x, logits)
    assert torch.equal(reused, logits)


@pytest.mark.parametrize('masked', [False, True])
def test_output_is_softmax_times_values(masked):
    """Both kinds end in proj(softmax(A) V), here head by head in float64."""
    x = torch.randn(2, N, DIM, dtype=torch.float64)
    mask = mask_of(2, [N, 5]) if masked else None
    vanilla = VanillaAttention(DIM, HEADS).double()
    out, logits = vanilla(x, mask=mask)
    less = less_attention(torch.float64)
    less_out, less_logits = less(x, logits, mask)
    values = {vanilla: vanilla.qkv(x)[..., 2 * DIM :], less: less.v(x)}
    for layer, got, scores in ((vanilla, out, logits), (less, less_out, less_logits)):
        for g in range(2):
            real = int(mask[g].sum()) if masked else N
            heads = []
            for h in range(HEADS):
                attn = scores[g, h, :real, :real].softmax(-1)
                heads.append(attn @ values[layer][g, :real, 8 * h : 8 * (h + 1)])
            expected = layer.proj(torch.cat(heads, -1))
            torch.testing.assert_close(got[g, :real], expected, rtol=1e-10, atol=1e-10)


def test_vanilla_logits_are_scaled_products_plus_the_residual():
    layer = VanillaAttention(DIM, HEADS).double()
    x = torch.randn(2, N, DIM, dtype=torch.float64)
    residual = torch.randn(2, HEADS, N, N, dtype=torch.float64)
    q, k, _ = layer.qkv(x).view(2, N, 3, HEADS, DIM // HEADS).unbind(2)
    expected = torch.einsum('gihd,gjhd->ghij', q, k) / (DIM // HEADS) ** 0.5 + residual
    torch.testing.assert_close(layer(x, residual)[1], expected)


def test_padding_never_changes_a_real_token():
    """A masked group equals the same layer on its real tokens alone, whatever the padding holds."""
    real = 5
    mask = mask_of(2, [real, real])
    x, logits = torch.randn(2, N, DIM), torch.randn(2, HEADS, N, N)
    loud, loud_logits = x.clone(), logits.clone()
    loud[:, real:] = 1e3
    loud_logits[..., real:, :] = 1e3
    loud_logits[..., real:] = -1e3

    vanilla = VanillaAttention(DIM, HEADS)
    out, scores = vanilla(loud, mask=mask)
    alone, alone_scores = vanilla(x[:, :real])
    torch.testing.assert_close(out[:, :real], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[..., :real, :real], alone_scores, rtol=1e-5, atol=1e-5)

    less, small = less_attention(), LessAttention(DIM, HEADS, real)
    state = less.state_dict()
    state = state | {k: state[k][:real, :real] for k in ('theta', 'psi')}
    small.load_state_dict(state)
    out, scores = less(loud, loud_logits, mask)
    alone, alone_scores = small(x[:, :real], logits[..., :real, :real])
    torch.testing.assert_close(out[:, :real], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[..., :real, :real], alone_scores, rtol=1e-5, atol=1e-5)


def test_a_group_without_real_tokens_stays_finite():
    mask = mask_of(2, [N, 0])
    x = torch.randn(2, N, DIM)
    out, logits = VanillaAttention(DIM, HEADS)(x, mask=mask)
    assert out.isfinite().all()
    assert less_attention()(x, logits, mask)[0].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_stays_finite_at_large_logits(dtype):
    """Twelve layers that each amplify, from logits of 1e4 up: forward and backward are finite."""
    x = torch.randn(2, N, DIM)
    logits = 1e4 * torch.randn(2, HEADS, N, N)
    vanilla = VanillaAttention(DIM, HEADS)
    mask = mask_of(2, [N, 5])
    with torch.autocast('cpu', dtype):
        x, logits = vanilla(100 * x, residual=logits, mask=mask)
        for _ in range(12):
            x, logits = less_attention(scale=0.5)(x, logits, mask)
            assert x.isfinite().all()
            assert logits.isfinite().all()
    x.float().square().sum().backward()
    assert vanilla.qkv.weight.grad.isfinite().all()


@pytest.mark.parametrize('heads', [0, -1, 5])
def test_heads_must_divide_dim(heads):
    for build in (lambda: VanillaAttention(DIM, heads), lambda: LessAttention(DIM, heads, N)):
        with pytest.raises(ValueError, match=f'num_heads={heads}.*dim=32'):
            build()


def test_num_tokens_must_be_positive():
    with pytest.raises(ValueError, match='num_tokens=0'):
        LessAttention(DIM, HEADS, 0)
