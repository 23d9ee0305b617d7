"""Less attention for training, some windows at a time (docs/performance.md)."""

from typing import Any

import torch
from torch import Tensor

from .scores import saturate, silence, softmax, transform
from .second_order import differentiable_gradients
from .tiles import runs, tile_mask


def less_attention(
    logits: Tensor, v: Tensor, theta: Tensor, psi: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``softmax(A') V`` and ``A' = Psi A Theta^T``, as the paper defines them (eq. 5).

    Args:
        logits: Scores ``A`` of shape ``(groups, heads, N, N)``.
        v: Values of shape ``(groups, heads, N, d)``.
        theta: Transform of the keys, ``(N, N)``.
        psi: Transform of the queries, ``(N, N)``.
        mask: Booleans of shape ``(groups, N)``, true where a token is real.

    Returns:
        Tokens of shape ``(groups, heads, N, d)`` and logits of shape ``(groups, heads, N, N)``.
    """
    logits = transform(logits, theta, psi, mask)
    # (groups, heads, N, N) x (groups, heads, N, d) -> (groups, heads, N, d)
    return softmax(logits, mask).to(v.dtype) @ v, logits


class StreamedLessAttention(torch.autograd.Function):
    """:func:`less_attention` for training; only ``A``, ``A'`` and ``V`` are kept.

    ``A`` is what the layer before has kept, so a layer adds one map of logits to the memory of a
    training step. The softmax and the product by ``Theta`` are computed again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, v: Tensor, theta: Tensor, psi: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Transform and attend.

        Args:
            ctx: What the backward pass needs.
            logits: Scores of shape ``(groups, heads, N, N)``.
            v: Values of shape ``(groups, heads, N, d)``.
            theta: Transform of the keys, ``(N, N)``.
            psi: Transform of the queries, ``(N, N)``.
            mask: Booleans of shape ``(groups, N)``, true where a token is real.

        Returns:
            Tokens of shape ``(groups, heads, N, d)`` and logits of shape ``(groups, heads, N, N)``.
        """
        # contiguous, whatever the inputs are: tiles are written through views
        out, new_logits = v.new_empty(v.shape), logits.new_empty(logits.shape)
        for groups in runs(logits):
            real = tile_mask(mask, groups)
            new = transform(logits[groups], theta, psi, real, out=new_logits[groups])
            attn = softmax(new, real).to(v.dtype)
            torch.bmm(attn.flatten(0, 1), v[groups].flatten(0, 1), out=out[groups].flatten(0, 1))
        ctx.save_for_backward(new_logits, logits, v, theta, psi, mask)
        ctx.set_materialize_grads(False)
        return out, new_logits

    @staticmethod
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_new: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Give the gradients for those of the tokens and of the new logits."""
        new_logits, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(less_attention, inputs, [grad_out, grad_new])
        logits, v, theta, psi, mask = inputs
        grad_logits, grad_v = logits.new_empty(logits.shape), v.new_empty(v.shape)
        wide = torch.promote_types(logits.dtype, torch.float32)
        grad_theta, grad_psi = (torch.zeros_like(t, dtype=wide) for t in (theta, psi))
        for groups in runs(logits):
            real = tile_mask(mask, groups)
            grad = None if grad_new is None else grad_new[groups]
            if grad_out is None:
                grad_v[groups] = 0
            else:
                attn = softmax(new_logits[groups], real)
                mine = grad_out[groups].flatten(0, 1)  # (groups * heads, N, d)
                torch.bmm(attn.to(v.dtype).flatten(0, 1).mT, mine, out=grad_v[groups].flatten(0, 1))
                grad_attn = torch.bmm(mine, v[groups].flatten(0, 1).mT).view_as(attn)
                through = torch._softmax_backward_data(
                    grad_attn.to(attn.dtype), attn, -1, attn.dtype
                ).to(logits.dtype)
                grad = through if grad is None else through.add_(grad)
            if grad is None:
                grad_logits[groups] = 0
                continue
            silent = silence(logits[groups], real)
            half = saturate(silent @ theta.T)
            grad = _unsaturated(grad, new_logits[groups])
            # sum over groups and heads of (N, N) x (N, N)
            grad_psi += torch.bmm(grad.flatten(0, 1), half.flatten(0, 1).mT).sum(0, dtype=wide)
            left = psi.T.expand(len(grad) * grad.shape[1], *psi.shape)
            grad = _unsaturated(torch.bmm(left, grad.flatten(0, 1)).view_as(half), half)
            # (N, groups * heads * N) x (groups * heads * N, N)
            grad_theta += grad.flatten(0, 2).T @ silent.flatten(0, 2)
            torch.mm(grad.flatten(0, 2), theta, out=grad_logits[groups].flatten(0, 2))
            if real is not None:
                grad_logits[groups] = silence(grad_logits[groups], real)
        return (
            grad_logits, grad_v, grad_theta.to(theta.dtype), grad_psi.to(psi.dtype), None,
        )  # fmt: skip


def _unsaturated(grad: Tensor, logits: Tensor) -> Tensor:
    """No gradient passes where half-precision logits stand at their limit."""
    if logits.dtype is not torch.float16:
        return grad
    return grad.masked_fill(logits.abs() >= torch.finfo(torch.float16).max, 0)
