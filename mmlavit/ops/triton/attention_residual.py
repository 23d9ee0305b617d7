# mypy: allow-untyped-defs, allow-incomplete-defs
"""The attention residual's convolution and norm in one kernel forward and one backward.

A program makes one window of the next stage, for one head: it gathers 16 taps from the (up to
four) windows below. Each pair of tokens is a tap of one pair only, so a gradient is stored, not
summed.
"""

from collections.abc import Sequence
from inspect import unwrap
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention_residual import attention_residual as definition
from ..windows import Windows
from .autograd import differentiable
from .shared import (
    load_logits,
    mask_pairs,
    new_logits,
    readable,
    row_length,
    size,
    store_logits,
    window_tokens,
)


def attention_residual(
    logits: Tensor, kernel: Tensor, windows: Windows, next_windows: Windows
) -> Tensor:
    """Compute what the definition of this name says."""
    return operator(logits, kernel, list(windows), list(next_windows))


@triton.jit
def corners(
    group, height, width, next_height, next_width,
    SIDE: tl.constexpr, NEXT_SIDE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """For each token of a window, the upper left one of the four below: row of windows, y, x."""
    next_rows, next_cols = tl.cdiv(next_height, NEXT_SIDE), tl.cdiv(next_width, NEXT_SIDE)
    token = tl.arange(0, SIZE)
    y = group // next_cols % next_rows * NEXT_SIDE + token // NEXT_SIDE
    x = group % next_cols * NEXT_SIDE + token % NEXT_SIDE
    first_row = group // (next_rows * next_cols) * tl.cdiv(height, SIDE)
    # what fills the places behind the window lies outside the map
    return first_row, tl.where(token < NEXT_SIDE * NEXT_SIDE, 2 * y, height), 2 * x


@triton.jit
def below(tap, first_row, y, x, height, width, SIDE: tl.constexpr):
    """Of one of the four tokens below: its window, its place there, and whether it is valid."""
    y += tap // 2
    x += tap % 2
    window = (first_row + y // SIDE) * tl.cdiv(width, SIDE) + x // SIDE
    return window, y % SIDE * SIDE + x % SIDE, (y < height) & (x < width)


@triton.jit
def normalized(
    logits_ptr, kernel_ptr, item, heads, height, width, next_height, next_width,
    SIDE: tl.constexpr, NEXT_SIDE: tl.constexpr, SIZE: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """The residual, what it was multiplied by, its valid tokens and the number of their pairs."""
    N: tl.constexpr = SIDE * SIDE
    group, head = item // heads, item % heads
    first_row, y, x = corners(group, height, width, next_height, next_width, SIDE, NEXT_SIDE, SIZE)
    pairs = tl.zeros((SIZE, SIZE), tl.float32)
    for a in range(4):
        window, query, valid = below(a, first_row, y, x, height, width, SIDE)
        row = (tl.cast(window, tl.int64) * heads + head) * N + query
        for b in range(4):
            other, key, valid_key = below(b, first_row, y, x, height, width, SIDE)
            attended = (window[:, None] == other[None, :]) & valid[:, None] & valid_key[None, :]
            at = logits_ptr + row[:, None] * ROW + key[None, :]
            weight = tl.load(kernel_ptr + head * 16 + a * 4 + b).to(tl.float32)
            pairs += weight * tl.load(at, mask=attended, other=0.0).to(tl.float32)
    _, valid = window_tokens(item, heads, next_height, next_width, NEXT_SIDE, SIZE)
    count = tl.sum(valid.to(tl.float32))
    count = count * count
    pairs = mask_pairs(pairs - tl.sum(tl.sum(pairs, 1), 0) / count, valid)
    scale = tl.rsqrt(tl.sum(tl.sum(pairs * pairs, 1), 0) / count + 1e-5)
    return pairs * scale, scale, valid, count


@triton.jit(do_not_specialize=['height', 'width', 'next_height', 'next_width'])
def forward_kernel(
    logits_ptr, kernel_ptr, out_ptr, heads, height, width, next_height, next_width,
    SIDE: tl.constexpr, NEXT_SIDE: tl.constexpr, SIZE: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    out, _, _, _ = normalized(
        logits_ptr, kernel_ptr, item, heads, height, width, next_height, next_width,
        SIDE, NEXT_SIDE, SIZE, ROW,
    )  # fmt: skip
    store_logits(out_ptr, item, out, NEXT_SIDE * NEXT_SIDE, NEXT_SIDE * NEXT_SIDE, SIZE)


@triton.jit(do_not_specialize=['height', 'width', 'next_height', 'next_width'])
def backward_kernel(
    dout_ptr, logits_ptr, kernel_ptr, dlogits_ptr, dkernel_ptr,
    heads, height, width, next_height, next_width,
    SIDE: tl.constexpr, NEXT_SIDE: tl.constexpr, SIZE: tl.constexpr, ROW: tl.constexpr,
    NEW_ROW: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = SIDE * SIDE
    NEXT_N: tl.constexpr = NEXT_SIDE * NEXT_SIDE
    item = tl.program_id(0)
    out, scale, valid, count = normalized(
        logits_ptr, kernel_ptr, item, heads, height, width, next_height, next_width,
        SIDE, NEXT_SIDE, SIZE, ROW,
    )  # fmt: skip
    dout = mask_pairs(load_logits(dout_ptr, item, NEXT_N, NEXT_N, SIZE), valid)
    dpairs = dout - tl.sum(tl.sum(dout, 1), 0) / count
    dpairs -= out * (tl.sum(tl.sum(dout * out, 1), 0) / count)
    dpairs = mask_pairs(dpairs * scale, valid)
    group, head = item // heads, item % heads
    first_row, y, x = corners(group, height, width, next_height, next_width, SIDE, NEXT_SIDE, SIZE)
    for a in range(4):
        window, query, valid = below(a, first_row, y, x, height, width, SIDE)
        row = (tl.cast(window, tl.int64) * heads + head) * N + query
        for b in range(4):
            other, key, valid_key = below(b, first_row, y, x, height, width, SIDE)
            attended = (window[:, None] == other[None, :]) & valid[:, None] & valid_key[None, :]
            at = logits_ptr + row[:, None] * ROW + key[None, :]
            logits = tl.load(at, mask=attended, other=0.0).to(tl.float32)
            tl.store(dkernel_ptr + item * 16 + a * 4 + b, tl.sum(tl.sum(dpairs * logits, 1), 0))
            dlogits = tl.load(kernel_ptr + head * 16 + a * 4 + b).to(tl.float32) * dpairs
            at = dlogits_ptr + row[:, None] * NEW_ROW + key[None, :]
            tl.store(at, dlogits.to(dlogits_ptr.dtype.element_ty), mask=attended)


@torch.library.custom_op('mmlavit::attention_residual', mutates_args=())
def operator(
    logits: Tensor, kernel: Tensor, windows: Sequence[int], next_windows: Sequence[int]
) -> Tensor:
    out = _residual(logits, kernel, windows, next_windows)
    logits, row = readable(logits)
    forward_kernel[(len(out) * logits.shape[1],)](
        logits, kernel.contiguous(), out, logits.shape[1], *windows[2:], *next_windows[2:],
        SIDE=windows[0], NEXT_SIDE=next_windows[0], SIZE=size(out.shape[-1]), ROW=row,
        num_warps=8, num_stages=1,
    )  # fmt: skip
    return out


@torch.library.custom_op('mmlavit::attention_residual_backward', mutates_args=())
def backward_operator(
    dout: Tensor,
    logits: Tensor,
    kernel: Tensor,
    windows: Sequence[int],
    next_windows: Sequence[int],
) -> tuple[Tensor, Tensor]:
    n = logits.shape[-1]
    # zeros: not every pair is in a window of the next stage
    dlogits = logits.new_zeros(*logits.shape[:3], row_length(n))[..., :n]
    logits, row = readable(logits)
    dkernel = kernel.new_empty(len(dout), *kernel.shape, dtype=torch.float32)
    backward_kernel[(len(dout) * logits.shape[1],)](
        dout.contiguous(), logits, kernel.contiguous(), dlogits, dkernel,
        logits.shape[1], *windows[2:], *next_windows[2:], SIDE=windows[0],
        NEXT_SIDE=next_windows[0], SIZE=size(dout.shape[-1]), ROW=row, NEW_ROW=row_length(n),
        num_warps=8, num_stages=1,
    )  # fmt: skip
    return dlogits, dkernel.sum(0)


@operator.register_fake
def _residual(
    logits: Tensor, kernel: Tensor, windows: Sequence[int], next_windows: Sequence[int]
) -> Tensor:
    side, batch, height, width = next_windows
    geometry = Windows(side, batch, height, width)
    groups = batch * geometry.rows * geometry.cols
    return logits.new_empty(groups, logits.shape[1], side**2, side**2, dtype=torch.float32)


@backward_operator.register_fake
def _gradients_like(dout: Tensor, logits: Tensor, kernel: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return new_logits(logits, *logits.shape[:3]), kernel.new_empty(
        kernel.shape, dtype=torch.float32
    )


def _gradients(*args: Any) -> tuple[Tensor, Tensor]:
    dlogits, dkernel = backward_operator(*args)
    return dlogits, dkernel.to(args[2].dtype)


def _definition(
    logits: Tensor, kernel: Tensor, windows: Sequence[int], next_windows: Sequence[int]
) -> Tensor:
    return unwrap(definition)(logits, kernel, Windows(*windows), Windows(*next_windows))


differentiable(operator, _gradients, _definition)
