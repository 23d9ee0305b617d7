# mypy: allow-untyped-defs, allow-incomplete-defs
"""The diagonality-preserving loss in one kernel forward and one backward."""

from collections.abc import Sequence
from inspect import unwrap
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..diagonality import Form
from ..diagonality import diagonality as definition
from ..windows import Windows
from .autograd import differentiable
from .shared import (
    fits,
    load_logits,
    mask_pairs,
    new_logits,
    programs,
    readable,
    row_length,
    size,
    softmax,
    softmax_gradient,
    store_logits,
    window_tokens,
)


def diagonality(logits: Tensor, windows: Windows | None, form: Form) -> tuple[Tensor, Tensor]:
    """Compute what the definition of this name says of the form 'hinge'."""
    if windows is None:
        windows = Windows(1, len(logits), 1, 1)  # any that fits its map: all tokens are valid
    asymmetry, excess = operator(logits, list(windows))
    return asymmetry, excess


@triton.jit
def attention_of(
    logits_ptr, item, heads, height, width, SIDE: tl.constexpr, N: tl.constexpr,
    SIZE: tl.constexpr, FITS: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """Attention between valid tokens, which these are, and how many."""
    valid = tl.arange(0, SIZE) < N
    if not FITS:
        _, valid = window_tokens(item, heads, height, width, SIDE, SIZE)
    attention = softmax(load_logits(logits_ptr, item, N, ROW, SIZE), valid)
    return mask_pairs(attention, valid), valid, tl.sum(valid.to(tl.float32))


@triton.jit
def diagonal(attention, SIZE: tl.constexpr):
    """Where the diagonal is, and its values as a column."""
    on = tl.arange(0, SIZE)[:, None] == tl.arange(0, SIZE)[None, :]
    return on, tl.sum(tl.where(on, attention, 0.0), 1)[:, None]


@triton.jit(do_not_specialize=['total', 'height', 'width'])
def forward_kernel(
    logits_ptr, values_ptr, total, heads, height, width,
    SIDE: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr, FITS: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    for item in range(tl.program_id(0), total, tl.num_programs(0)):
        attention, valid, count = attention_of(
            logits_ptr, item, heads, height, width, SIDE, N, SIZE, FITS, ROW
        )
        _, peak = diagonal(attention, SIZE)
        asymmetry = tl.sum(tl.sum(tl.abs(attention - tl.trans(attention)), 1), 0)
        excess = mask_pairs(tl.maximum(attention - peak, 0.0), valid)
        excess = tl.sum(tl.sum(excess, 1), 0)
        tl.store(values_ptr + item, asymmetry / (2 * count))
        tl.store(values_ptr + total + item, excess / (tl.maximum(count - 1, 1.0) * count))


@triton.jit(do_not_specialize=['total', 'height', 'width'])
def backward_kernel(
    dvalues_ptr, logits_ptr, dlogits_ptr, total, heads, height, width,
    SIDE: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr, FITS: tl.constexpr,
    ROW: tl.constexpr, NEW_ROW: tl.constexpr,
):  # fmt: skip
    dasymmetry = tl.load(dvalues_ptr) / total
    dexcess = tl.load(dvalues_ptr + 1) / total
    for item in range(tl.program_id(0), total, tl.num_programs(0)):
        attention, valid, count = attention_of(
            logits_ptr, item, heads, height, width, SIDE, N, SIZE, FITS, ROW
        )
        on, peak = diagonal(attention, SIZE)
        other = tl.trans(attention)
        sign = tl.where(attention > other, 1.0, 0.0) - tl.where(attention < other, 1.0, 0.0)
        # a tie counts as an excess, as in torch's gradient of clamp
        above = mask_pairs(tl.where(attention >= peak, 1.0, 0.0), valid)
        above -= tl.where(on, tl.sum(above, 1)[:, None], 0.0)
        gradient = sign * (dasymmetry / count)
        gradient += above * (dexcess / (tl.maximum(count - 1, 1.0) * count))
        gradient = softmax_gradient(attention, gradient)
        store_logits(dlogits_ptr, item, gradient, N, NEW_ROW, SIZE)


@torch.library.custom_op('mmlavit::diagonality', mutates_args=())
def operator(logits: Tensor, windows: Sequence[int]) -> Tensor:
    items = len(logits) * logits.shape[1]
    values = logits.new_empty(2, items, dtype=torch.float32)
    logits, row = readable(logits)
    forward_kernel[programs(items, logits.device, 6)](
        logits, values, items, logits.shape[1], *windows[2:], **_constants(logits, windows),
        ROW=row, num_warps=8, num_stages=1,
    )  # fmt: skip
    return values.mean(1)


@torch.library.custom_op('mmlavit::diagonality_backward', mutates_args=())
def backward_operator(dvalues: Tensor, logits: Tensor, windows: Sequence[int]) -> Tensor:
    items = len(logits) * logits.shape[1]
    dlogits = _gradient(dvalues, logits)
    logits, row = readable(logits)
    backward_kernel[programs(items, logits.device, 6)](
        dvalues.contiguous(), logits, dlogits, items, logits.shape[1], *windows[2:],
        **_constants(logits, windows), ROW=row, NEW_ROW=row_length(logits.shape[-1]),
        num_warps=8, num_stages=1,
    )  # fmt: skip
    return dlogits


@operator.register_fake
def _values(logits: Tensor, windows: Sequence[int]) -> Tensor:
    return logits.new_empty(2, dtype=torch.float32)


@backward_operator.register_fake
def _gradient(dvalues: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return new_logits(logits, *logits.shape[:3])


def _constants(logits: Tensor, windows: Sequence[int]) -> dict[str, Any]:
    """What a kernel is compiled for."""
    n = logits.shape[-1]
    return dict(SIDE=windows[0], N=n, SIZE=size(n), FITS=fits(Windows(*windows)))


def _gradients(*args: Any) -> tuple[Tensor]:
    return (backward_operator(*args),)


def _definition(logits: Tensor, windows: Sequence[int]) -> Tensor:
    return torch.stack(unwrap(definition)(logits, Windows(*windows), 'hinge'))


differentiable(operator, _gradients, _definition)
