# mypy: allow-untyped-defs, allow-incomplete-defs
"""What the kernels share: where tokens and logits lie in memory, and softmax.

An item is one window and one head. The ``N`` tokens of a window fill ``SIZE`` places, a power of
two. Tokens are read from a map and written to it where they are; nothing is cut into windows.
A program of a kernel works through many items, so that it loads what they share once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..windows import Windows


@triton.jit
def window_tokens(item, heads, height, width, SIDE: tl.constexpr, SIZE: tl.constexpr):
    """Places in a map of a window's tokens, counted in tokens, and which of them are valid."""
    rows, cols = tl.cdiv(height, SIDE), tl.cdiv(width, SIDE)
    token = tl.arange(0, SIZE)
    group = item // heads
    image = tl.cast(group // (rows * cols), tl.int64)
    y = group // cols % rows * SIDE + token // SIDE
    x = group % cols * SIDE + token % SIDE
    return (image * height + y) * width + x, (token < SIDE * SIDE) & (y < height) & (x < width)


@triton.jit
def load_tokens(pointer, places, valid, stride, channel, WIDTH: tl.constexpr):
    """Load the channels of a head, ``(SIZE, WIDTH)``, 0 where a token is padding."""
    channels = channel + tl.arange(0, WIDTH)[None, :]
    return tl.load(pointer + places[:, None] * stride + channels, mask=valid[:, None], other=0.0)


@triton.jit
def store_tokens(pointer, places, valid, stride, channel, value, WIDTH: tl.constexpr):
    """Store the channels of a head, ``(SIZE, WIDTH)``."""
    at = pointer + places[:, None] * stride + channel + tl.arange(0, WIDTH)[None, :]
    tl.store(at, value.to(pointer.dtype.element_ty), mask=valid[:, None])


@triton.jit
def load_logits(pointer, item, N: tl.constexpr, ROW: tl.constexpr, SIZE: tl.constexpr):
    """Load the logits of an item, ``(SIZE, SIZE)`` with zeros behind ``N``."""
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    at = pointer + tl.cast(item, tl.int64) * (N * ROW) + i * ROW + j
    # up to ROW, not N: where that is a multiple of 8, a load takes 8 numbers
    return tl.where(j < N, tl.load(at, mask=(i < N) & (j < ROW), other=0.0), 0.0)


@triton.jit
def store_logits(pointer, item, value, N: tl.constexpr, ROW: tl.constexpr, SIZE: tl.constexpr):
    """Store the logits of an item, ``(SIZE, SIZE)``, with zeros up to the end of a row."""
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    at = pointer + tl.cast(item, tl.int64) * (N * ROW) + i * ROW + j
    value = tl.where(j < N, value, 0.0).to(pointer.dtype.element_ty)
    tl.store(at, value, mask=(i < N) & (j < ROW))


@triton.jit
def load_matrix(pointer, dtype: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr):
    """Load a matrix ``(N, N)`` as ``(SIZE, SIZE)`` with zeros behind ``N``."""
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    return tl.load(pointer + i * N + j, mask=(i < N) & (j < N), other=0.0).to(dtype)


@triton.jit
def mask_pairs(pairs, valid):
    """Set pairs ``(SIZE, SIZE)`` to 0 of which a token is padding."""
    return tl.where(valid[:, None] & valid[None, :], pairs, 0.0)


@triton.jit
def clamp(x, dtype: tl.constexpr):
    """Keep float32 within float16 if that is the type to come: past it, a softmax is one-hot."""
    if dtype == tl.float16:
        x = tl.minimum(tl.maximum(x, -65504.0), 65504.0)
    return x


@triton.jit
def softmax(logits, valid):
    """Attention in float32; padded keys get none."""
    logits = tl.where(valid[None, :], logits.to(tl.float32), float('-inf'))
    attention = tl.exp(logits - tl.max(logits, 1)[:, None])
    return attention / tl.sum(attention, 1)[:, None]


@triton.jit
def softmax_gradient(attention, gradient):
    """Gradient by the logits, from that by the attention."""
    return attention * (gradient - tl.sum(attention * gradient, 1)[:, None])


def new_logits(like: Tensor, groups: int, heads: int, n: int) -> Tensor:
    """Memory for logits ``(groups, heads, N, N)`` whose rows lie a multiple of 8 numbers apart."""
    return like.new_empty(groups, heads, n, row_length(n))[..., :n]


def row_length(n: int) -> int:
    """Numbers from one row of :func:`new_logits` to the next."""
    return (n + 7) // 8 * 8


def readable(logits: Tensor) -> tuple[Tensor, int]:
    """Logits as a kernel reads them, and the numbers from one row to the next.

    Those of :func:`new_logits` are such as they are, the others contiguous.
    """
    groups, heads, n, _ = logits.shape
    row = row_length(n)
    end = logits.storage_offset() + groups * heads * n * row
    if (
        logits.stride() == (heads * n * row, n * row, row, 1)
        and end * logits.element_size() <= logits.untyped_storage().nbytes()
    ):
        return logits, row
    return logits.contiguous(), n


def programs(total: int, device: torch.device, each: int) -> tuple[int]:
    """A grid of at most ``each`` programs a multiprocessor for so many items."""
    if device.type != 'cuda':
        return (min(total, 3),)  # the interpreter: enough to test sums over programs
    return (min(total, each * torch.cuda.get_device_properties(device).multi_processor_count),)


def constants(x: Tensor, windows: Windows, width: int) -> dict[str, Any]:
    """What kernels on windows of a map, with heads of this width, are compiled for."""
    n = windows.side**2
    return dict(
        SIDE=windows.side,
        SIZE=size(n),
        WIDTH=width,
        NEW_ROW=row_length(n),
        # products do not round float32; the other types ignore this
        PRECISION='ieee' if x.dtype == torch.float32 else 'tf32',
    )


def size(n: int) -> int:
    """The places that ``n`` tokens fill: a power of two that matrix products take."""
    return max(triton.next_power_of_2(n), 16)


def items(windows: Windows, heads: int) -> int:
    """Windows times heads."""
    return windows.batch * windows.rows * windows.cols * heads


def fits(windows: Windows) -> bool:
    """Whether no token is padding."""
    return windows.height % windows.side == 0 and windows.width % windows.side == 0
