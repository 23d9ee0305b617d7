"""What every attention does to its logits, that is, to scores before the softmax."""

import torch
from torch import Tensor


def saturate(logits: Tensor) -> Tensor:
    """Keep half-precision logits finite: past 65504 a softmax has long been one-hot."""
    if logits.dtype is not torch.float16:
        return logits
    limit = torch.finfo(torch.float16).max
    return logits.clamp(-limit, limit)


def silence(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the pairs of which a token is padding, before a transform mixes all tokens of a group.

    Args:
        logits: Scores of shape ``(groups, heads, N, N)``.
        mask: Booleans of shape ``(groups, N)``, true where a token is real.
    """
    if mask is None:
        return logits
    # products, on a CPU several times as fast as filling by a mask of fewer heads
    real = mask.to(logits.dtype)
    return logits * (real[:, None, :, None] * real[:, None, None, :])  # (groups, heads, N, N)


def key_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What silences padded keys, ``(groups, 1, 1, N)``, to be added to logits.

    Args:
        mask: Booleans of shape ``(groups, N)``, true where a token is real.
        dtype: Of the result.
    """
    # half the lowest finite value: no logit pushes it out of range, and a group without any real
    # token gives no NaN
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, torch.finfo(dtype).min / 2)[:, None, None, :]


def softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of shape ``(groups, heads, N, N)``, in float32 or better.

    Args:
        logits: Scores of shape ``(groups, heads, N, N)``.
        mask: Booleans of shape ``(groups, N)``, true where a token is real.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if mask is not None:
        logits = logits.to(dtype) + key_bias(mask, dtype)
    return logits.softmax(-1, dtype=dtype)


def transform(
    logits: Tensor, theta: Tensor, psi: Tensor, mask: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """``Psi A Theta^T`` (paper, eq. 5).

    Args:
        logits: Scores ``A`` of shape ``(groups, heads, N, N)``.
        theta: Transform of the keys, ``(N, N)``.
        psi: Transform of the queries, ``(N, N)``.
        mask: Booleans of shape ``(groups, N)``, true where a token is real.
        out: Where to write the result, of the type and shape of ``logits``; without gradients.
    """
    groups, heads, n, _ = logits.shape
    # (groups, heads, N, N) x (N, N)
    half = saturate(silence(logits, mask) @ theta.T)
    # (groups * heads, N, N) x (groups * heads, N, N), with one Psi for all
    left, right = psi.expand(groups * heads, n, n), half.flatten(0, 1)
    if out is not None and out.dtype is not torch.float16:
        torch.bmm(left, right, out=out.flatten(0, 1))
        return out
    return saturate(torch.bmm(left, right).view_as(logits))
