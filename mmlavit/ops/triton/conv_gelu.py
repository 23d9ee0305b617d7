# mypy: allow-untyped-defs, allow-incomplete-defs
"""The depthwise 3x3 convolution and its GELU in one kernel forward and two backward.

A program slides down a strip of the map, ``COLUMNS`` tokens wide and ``BLOCK`` channels deep, and
keeps rows that it has read: neighbouring strips alone read a token again. The backward pass
computes the convolution again, so that the forward pass keeps nothing but its input.
"""

from inspect import unwrap
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..conv_gelu import conv_gelu as definition
from .autograd import differentiable
from .shared import programs

COLUMNS, ROWS, BLOCK = 8, 7, 64


def conv_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute what the definition of this name says."""
    return operator(x, weight, bias)


@triton.jit
def strip_of(number, height, width, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Of a strip: the place of its image's first token, its top row, its columns."""
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    image = tl.cast(number // (across * down), tl.int64)
    x = number % across * COLUMNS + tl.arange(0, COLUMNS)
    return image * height * width, number // across % down * ROWS, x


@triton.jit
def load_row(pointer, image, y, x, channel, height, width, channels):
    """Tokens of a row in float32, ``(COLUMNS, BLOCK)``, 0 outside the map."""
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    at = pointer + (image + y * width + x)[:, None] * channels + channel[None, :]
    mask = inside[:, None] & (channel < channels)[None, :]
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_three(pointer, image, y, x, channel, height, width, channels):
    """Tokens of a row, with their left and right neighbours."""
    left = load_row(pointer, image, y, x - 1, channel, height, width, channels)
    middle = load_row(pointer, image, y, x, channel, height, width, channels)
    right = load_row(pointer, image, y, x + 1, channel, height, width, channels)
    return left, middle, right


@triton.jit
def load_taps(weight_ptr, row: tl.constexpr, channel, channels, FLIP: tl.constexpr):
    """A row of the weights ``(channels, 3, 3)``, flipped for the convolution's transpose."""
    first: tl.constexpr = 8 - 3 * row if FLIP else 3 * row
    step: tl.constexpr = -1 if FLIP else 1
    at = weight_ptr + channel * 9 + first
    mask = channel < channels
    left = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    middle = tl.load(at + step, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(at + 2 * step, mask=mask, other=0.0).to(tl.float32)
    return left, middle, right


@triton.jit
def dot(taps, tokens):
    """Three taps applied to three tokens."""
    return taps[0] * tokens[0] + taps[1] * tokens[1] + taps[2] * tokens[2]


@triton.jit
def add_products(sums, gradient, tokens):
    """Gradients by three taps, summed up."""
    left = sums[0] + gradient * tokens[0]
    middle = sums[1] + gradient * tokens[1]
    return left, middle, sums[2] + gradient * tokens[2]


@triton.jit
def store_sums(pointer, sums, mask):
    """Store gradients by a row of weights, summed over the columns of a strip."""
    tl.store(pointer, tl.sum(sums[0], 0), mask=mask)
    tl.store(pointer + 1, tl.sum(sums[1], 0), mask=mask)
    tl.store(pointer + 2, tl.sum(sums[2], 0), mask=mask)


@triton.jit
def store_row(pointer, value, image, y, x, channel, height, width, channels):
    """Store tokens of a row, ``(COLUMNS, BLOCK)``, inside the map."""
    at = pointer + (image + y * width + x)[:, None] * channels + channel[None, :]
    mask = ((y < height) & (x < width))[:, None] & (channel < channels)[None, :]
    tl.store(at, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['height', 'width'])
def convolve_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, height, width, channels,
    FLIP: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, top, x = strip_of(tl.program_id(0), height, width, COLUMNS, ROWS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    upper = load_taps(weight_ptr, 0, channel, channels, FLIP)
    middle = load_taps(weight_ptr, 1, channel, channels, FLIP)
    lower = load_taps(weight_ptr, 2, channel, channels, FLIP)
    bias = tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)
    # of two rows of results, what the tokens so far add
    this = tl.zeros((COLUMNS, BLOCK), tl.float32)
    following = tl.zeros((COLUMNS, BLOCK), tl.float32)
    for step in tl.static_range(ROWS + 2):
        tokens = load_three(x_ptr, image, top + step - 1, x, channel, height, width, channels)
        if step >= 2:
            out = this + dot(lower, tokens) + bias
            if GELU:
                out = 0.5 * out * (1.0 + tl.math.erf(out * 0.7071067811865476))
            y = top + step - 2
            store_row(out_ptr, out, image, y, x, channel, height, width, channels)
        this = following + dot(middle, tokens)
        following = dot(upper, tokens)


@triton.jit(do_not_specialize=['strips', 'height', 'width'])
def backward_kernel(
    dout_ptr, x_ptr, weight_ptr, bias_ptr, dconv_ptr, sums_ptr, strips, height, width, channels,
    HAS_BIAS: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients by the result of the convolution, by its weights and by its bias."""
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < channels
    upper = load_taps(weight_ptr, 0, channel, channels, False)
    middle = load_taps(weight_ptr, 1, channel, channels, False)
    lower = load_taps(weight_ptr, 2, channel, channels, False)
    bias = tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    zero = tl.zeros((COLUMNS, BLOCK), tl.float32)
    dupper, dmiddle, dlower, dbias = (
        (zero, zero, zero),
        (zero, zero, zero),
        (zero, zero, zero),
        zero,
    )
    for strip in range(tl.program_id(0), strips, tl.num_programs(0)):
        image, top, x = strip_of(strip, height, width, COLUMNS, ROWS)
        above = load_three(x_ptr, image, top - 1, x, channel, height, width, channels)
        here = load_three(x_ptr, image, top, x, channel, height, width, channels)
        for step in range(ROWS):
            y = top + step
            below = load_three(x_ptr, image, y + 1, x, channel, height, width, channels)
            conv = dot(upper, above) + dot(middle, here) + dot(lower, below) + bias
            normal = 0.3989422804014327 * tl.exp(-0.5 * conv * conv)
            gelu = 0.5 * (1.0 + tl.math.erf(conv * 0.7071067811865476)) + conv * normal
            # 0 outside the map
            dout = load_row(dout_ptr, image, y, x, channel, height, width, channels)
            dconv = dout * gelu
            store_row(dconv_ptr, dconv, image, y, x, channel, height, width, channels)
            dupper = add_products(dupper, dconv, above)
            dmiddle = add_products(dmiddle, dconv, here)
            dlower = add_products(dlower, dconv, below)
            dbias += dconv
            above = here
            here = below
    # (channels, 9) weights, then the biases
    at = sums_ptr + tl.program_id(0) * 10 * channels
    store_sums(at + channel * 9, dupper, mask)
    store_sums(at + channel * 9 + 3, dmiddle, mask)
    store_sums(at + channel * 9 + 6, dlower, mask)
    tl.store(at + channels * 9 + channel, tl.sum(dbias, 0), mask=mask)


@torch.library.custom_op('mmlavit::conv_gelu', mutates_args=())
def operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _convolve(x.contiguous(), weight.contiguous(), bias, flip=False, gelu=True)


@torch.library.custom_op('mmlavit::conv_gelu_backward', mutates_args=())
def backward_operator(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    dout, x, weight = dout.contiguous(), x.contiguous(), weight.contiguous()
    strips, blocks = _grid(x)
    grid = (*programs(strips, x.device, max(8 // blocks, 1)), blocks)
    dconv = torch.empty_like(x)
    # (programs, weights and biases)
    sums = x.new_empty(grid[0], 10 * x.shape[-1], dtype=torch.float32)
    backward_kernel[grid](
        dout, x, weight, weight if bias is None else bias, dconv, sums, strips, *x.shape[1:],
        HAS_BIAS=bias is not None, COLUMNS=COLUMNS, ROWS=ROWS, BLOCK=BLOCK, num_warps=4,
        num_stages=1,
    )  # fmt: skip
    return _convolve(dconv, weight, None, flip=True, gelu=False), sums.sum(0)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, flip: bool, gelu: bool) -> Tensor:
    out = torch.empty_like(x)
    convolve_kernel[_grid(x)](
        x, weight, weight if bias is None else bias, out, *x.shape[1:], FLIP=flip,
        HAS_BIAS=bias is not None, GELU=gelu, COLUMNS=COLUMNS, ROWS=ROWS, BLOCK=BLOCK,
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return out


def _grid(x: Tensor) -> tuple[int, int]:
    """Strips of the maps, and blocks of channels."""
    batch, height, width, channels = x.shape
    strips = batch * triton.cdiv(height, ROWS) * triton.cdiv(width, COLUMNS)
    return strips, triton.cdiv(channels, BLOCK)


@operator.register_fake
def _activations(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@backward_operator.register_fake
def _gradients_like(dout: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(10 * x.shape[-1], dtype=torch.float32)


def _gradients(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    dx, sums = backward_operator(dout, x, weight, bias)
    dweight, dbias = sums.split((weight.numel(), len(weight)))
    dweight = dweight.view(weight.shape).to(weight.dtype)
    return dx, dweight, None if bias is None else dbias.to(bias.dtype)


differentiable(operator, _gradients, unwrap(definition))
