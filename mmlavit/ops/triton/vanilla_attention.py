# mypy: allow-untyped-defs, allow-incomplete-defs
"""Vanilla attention in one kernel forward and one backward."""

from collections.abc import Sequence
from inspect import unwrap
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..vanilla_attention import vanilla_attention as definition
from ..windows import Windows
from .autograd import differentiable
from .shared import (
    clamp,
    constants,
    items,
    load_logits,
    load_tokens,
    new_logits,
    programs,
    readable,
    softmax,
    softmax_gradient,
    store_logits,
    store_tokens,
    window_tokens,
)


def vanilla_attention(
    qkv: Tensor, residual: Tensor | None, windows: Windows, heads: int, keep_logits: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute what the definition of this name says."""
    out, logits = operator(qkv, residual, list(windows), heads, keep_logits)
    return out, logits if keep_logits else None


@triton.jit
def dot_products(
    q, k, residual_ptr, item, N: tl.constexpr, SIZE: tl.constexpr,
    ROW: tl.constexpr, HAS_RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits, in the type in which they are handed on."""
    scale = 1 / tl.sqrt(tl.cast(q.shape[1], tl.float32))
    logits = clamp(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, q.dtype)
    if HAS_RESIDUAL:
        logits += load_logits(residual_ptr, item, N, ROW, SIZE).to(tl.float32)
        logits = clamp(logits, q.dtype)
    return logits.to(q.dtype), scale


@triton.jit(do_not_specialize=['total', 'height', 'width'])
def forward_kernel(
    qkv_ptr, residual_ptr, out_ptr, logits_ptr, total, heads, height, width,
    SIDE: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    ROW: tl.constexpr, NEW_ROW: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    KEEP_LOGITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = SIDE * SIDE
    channels = heads * WIDTH
    for item in range(tl.program_id(0), total, tl.num_programs(0)):
        places, valid = window_tokens(item, heads, height, width, SIDE, SIZE)
        channel = item % heads * WIDTH
        q = load_tokens(qkv_ptr, places, valid, 3 * channels, channel, WIDTH)
        k = load_tokens(qkv_ptr + channels, places, valid, 3 * channels, channel, WIDTH)
        v = load_tokens(qkv_ptr + 2 * channels, places, valid, 3 * channels, channel, WIDTH)
        logits, _ = dot_products(
            q, k, residual_ptr, item, N, SIZE, ROW, HAS_RESIDUAL, PRECISION
        )  # fmt: skip
        if KEEP_LOGITS:
            store_logits(logits_ptr, item, logits, N, NEW_ROW, SIZE)
        out = tl.dot(softmax(logits, valid).to(v.dtype), v, input_precision=PRECISION)
        store_tokens(out_ptr, places, valid, channels, channel, out, WIDTH)


@triton.jit(do_not_specialize=['total', 'height', 'width'])
def backward_kernel(
    dout_ptr, dlogits_ptr, qkv_ptr, residual_ptr, dqkv_ptr, dresidual_ptr,
    total, heads, height, width,
    SIDE: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    ROW: tl.constexpr, NEW_ROW: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    DLOGITS_ROW: tl.constexpr, HAS_DLOGITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = SIDE * SIDE
    channels = heads * WIDTH
    for item in range(tl.program_id(0), total, tl.num_programs(0)):
        places, valid = window_tokens(item, heads, height, width, SIDE, SIZE)
        channel = item % heads * WIDTH
        q = load_tokens(qkv_ptr, places, valid, 3 * channels, channel, WIDTH)
        k = load_tokens(qkv_ptr + channels, places, valid, 3 * channels, channel, WIDTH)
        v = load_tokens(qkv_ptr + 2 * channels, places, valid, 3 * channels, channel, WIDTH)
        dout = load_tokens(dout_ptr, places, valid, channels, channel, WIDTH)
        logits, scale = dot_products(
            q, k, residual_ptr, item, N, SIZE, ROW, HAS_RESIDUAL, PRECISION
        )  # fmt: skip
        attention = softmax(logits, valid)
        dv = tl.dot(tl.trans(attention.to(v.dtype)), dout, input_precision=PRECISION)
        store_tokens(dqkv_ptr + 2 * channels, places, valid, 3 * channels, channel, dv, WIDTH)
        dlogits = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dlogits = softmax_gradient(attention, dlogits)
        if HAS_DLOGITS:
            dlogits += load_logits(dlogits_ptr, item, N, DLOGITS_ROW, SIZE).to(tl.float32)
        if HAS_RESIDUAL:
            store_logits(dresidual_ptr, item, dlogits, N, NEW_ROW, SIZE)
        dlogits = (dlogits * scale).to(q.dtype)
        dq = tl.dot(dlogits, k, input_precision=PRECISION)
        dk = tl.dot(tl.trans(dlogits), q, input_precision=PRECISION)
        store_tokens(dqkv_ptr, places, valid, 3 * channels, channel, dq, WIDTH)
        store_tokens(dqkv_ptr + channels, places, valid, 3 * channels, channel, dk, WIDTH)


@torch.library.custom_op('mmlavit::vanilla_attention', mutates_args=())
def operator(
    qkv: Tensor, residual: Tensor | None, windows: Sequence[int], heads: int, keep_logits: bool
) -> tuple[Tensor, Tensor]:
    out, logits = _results(qkv, residual, windows, heads, keep_logits)
    qkv = qkv.contiguous()
    residual_read, row = (qkv, 0) if residual is None else readable(residual)
    geometry = Windows(*windows)
    forward_kernel[programs(items(geometry, heads), qkv.device, 6)](
        qkv, residual_read, out, logits, items(geometry, heads), heads, *windows[2:],
        **constants(qkv, geometry, out.shape[-1] // heads), ROW=row,
        HAS_RESIDUAL=residual is not None, KEEP_LOGITS=keep_logits, num_warps=4, num_stages=1,
    )  # fmt: skip
    return out, logits


@torch.library.custom_op('mmlavit::vanilla_attention_backward', mutates_args=())
def backward_operator(
    dout: Tensor | None,
    dlogits: Tensor | None,
    qkv: Tensor,
    residual: Tensor | None,
    windows: Sequence[int],
    heads: int,
    keep_logits: bool,
) -> tuple[Tensor, Tensor]:
    dqkv, dresidual = _backward_results(dout, dlogits, qkv, residual)
    qkv = qkv.contiguous()
    if dout is None:
        dout = qkv.new_zeros(*qkv.shape[:3], qkv.shape[3] // 3)
    residual_read, row = (qkv, 0) if residual is None else readable(residual)
    if not keep_logits:
        dlogits = None  # a compiled graph gives zeros for what nobody reads
    dlogits_read, dlogits_row = (qkv, 0) if dlogits is None else readable(dlogits)
    geometry = Windows(*windows)
    backward_kernel[programs(items(geometry, heads), qkv.device, 2)](
        dout.contiguous(), dlogits_read, qkv, residual_read, dqkv, dresidual,
        items(geometry, heads), heads, *windows[2:],
        **constants(qkv, geometry, dout.shape[-1] // heads), ROW=row,
        HAS_RESIDUAL=residual is not None, DLOGITS_ROW=dlogits_row,
        HAS_DLOGITS=dlogits is not None, num_warps=4, num_stages=1,
    )  # fmt: skip
    return dqkv, dresidual


@operator.register_fake
def _results(
    qkv: Tensor, residual: Tensor | None, windows: Sequence[int], heads: int, keep_logits: bool
) -> tuple[Tensor, Tensor]:
    out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    side, batch, height, width = windows
    geometry = Windows(side, batch, height, width)
    if not keep_logits:
        return out, qkv.new_empty(0)
    return out, new_logits(qkv, batch * geometry.rows * geometry.cols, heads, side**2)


@backward_operator.register_fake
def _backward_results(
    dout: Tensor | None, dlogits: Tensor | None, qkv: Tensor, residual: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    dqkv = qkv.new_empty(qkv.shape)
    if residual is None:
        return dqkv, qkv.new_empty(0)
    return dqkv, new_logits(residual, *residual.shape[:3])


def _gradients(*args: Any) -> tuple[Tensor, Tensor | None]:
    dqkv, dresidual = backward_operator(*args)
    return dqkv, None if args[3] is None else dresidual


def _definition(
    qkv: Tensor, residual: Tensor | None, windows: Sequence[int], heads: int, keep_logits: bool
) -> tuple[Tensor, Tensor | None]:
    return unwrap(definition)(qkv, residual, Windows(*windows), heads, keep_logits)


differentiable(operator, _gradients, _definition)
