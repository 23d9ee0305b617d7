# mypy: allow-untyped-defs, allow-incomplete-defs
"""Less attention in one kernel forward and one backward."""

from collections.abc import Sequence
from inspect import unwrap
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..less_attention import less_attention as definition
from ..windows import Windows
from .autograd import differentiable
from .shared import (
    clamp,
    constants,
    fits,
    items,
    load_logits,
    load_matrix,
    load_tokens,
    mask_pairs,
    new_logits,
    programs,
    readable,
    softmax,
    softmax_gradient,
    store_logits,
    store_tokens,
    window_tokens,
)


def less_attention(
    v: Tensor, logits: Tensor, theta: Tensor, psi: Tensor, windows: Windows
) -> tuple[Tensor, Tensor]:
    """Compute what the definition of this name says."""
    return operator(v, logits.to(v.dtype), theta, psi, list(windows))


@triton.jit
def transform(logits, theta, psi, PRECISION: tl.constexpr):
    """``A + A Theta'^T``, and ``Psi'`` applied to that; both in float32."""
    dtype: tl.constexpr = logits.dtype
    half = logits.to(tl.float32) + tl.dot(logits, tl.trans(theta), input_precision=PRECISION)
    half = clamp(half, dtype)
    new = half + tl.dot(psi, half.to(dtype), input_precision=PRECISION)
    return half, clamp(new, dtype)


@triton.jit(do_not_specialize=['total', 'height', 'width'])
def forward_kernel(
    v_ptr, logits_ptr, theta_ptr, psi_ptr, out_ptr, new_ptr,
    total, heads, height, width,
    SIDE: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, FITS: tl.constexpr,
    ROW: tl.constexpr, NEW_ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = SIDE * SIDE
    stride = heads * WIDTH
    theta = load_matrix(theta_ptr, v_ptr.dtype.element_ty, N, SIZE)
    psi = load_matrix(psi_ptr, v_ptr.dtype.element_ty, N, SIZE)
    for item in range(tl.program_id(0), total, tl.num_programs(0)):
        places, valid = window_tokens(item, heads, height, width, SIDE, SIZE)
        channel = item % heads * WIDTH
        logits = load_logits(logits_ptr, item, N, ROW, SIZE)
        v = load_tokens(v_ptr, places, valid, stride, channel, WIDTH)
        if not FITS:
            logits = mask_pairs(logits, valid)
        _, new = transform(logits, theta, psi, PRECISION)
        new = new.to(v.dtype)
        store_logits(new_ptr, item, new, N, NEW_ROW, SIZE)
        out = tl.dot(softmax(new, valid).to(v.dtype), v, input_precision=PRECISION)
        store_tokens(out_ptr, places, valid, stride, channel, out, WIDTH)


@triton.jit(do_not_specialize=['total', 'height', 'width'])
def backward_kernel(
    dout_ptr, dnew_ptr, v_ptr, logits_ptr, theta_ptr, psi_ptr,
    dv_ptr, dlogits_ptr, dtransforms_ptr,
    total, heads, height, width,
    SIDE: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, FITS: tl.constexpr,
    ROW: tl.constexpr, NEW_ROW: tl.constexpr, DNEW_ROW: tl.constexpr, HAS_DNEW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = SIDE * SIDE
    stride = heads * WIDTH
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    theta = load_matrix(theta_ptr, dtype, N, SIZE)
    psi = load_matrix(psi_ptr, dtype, N, SIZE)
    # summed over all items of the program: what the programs have is added up by torch
    dtheta = tl.zeros((SIZE, SIZE), tl.float32)
    dpsi = tl.zeros((SIZE, SIZE), tl.float32)
    for item in range(tl.program_id(0), total, tl.num_programs(0)):
        places, valid = window_tokens(item, heads, height, width, SIDE, SIZE)
        channel = item % heads * WIDTH
        logits = load_logits(logits_ptr, item, N, ROW, SIZE)
        v = load_tokens(v_ptr, places, valid, stride, channel, WIDTH)
        dout = load_tokens(dout_ptr, places, valid, stride, channel, WIDTH)
        if not FITS:
            logits = mask_pairs(logits, valid)
        half, new = transform(logits, theta, psi, PRECISION)
        attention = softmax(new.to(dtype), valid)
        dv = tl.dot(tl.trans(attention.to(dtype)), dout, input_precision=PRECISION)
        store_tokens(dv_ptr, places, valid, stride, channel, dv, WIDTH)
        dnew = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dnew = softmax_gradient(attention, dnew)
        if HAS_DNEW:
            dnew += load_logits(dnew_ptr, item, N, DNEW_ROW, SIZE).to(tl.float32)
        narrow = dnew.to(dtype)
        dpsi = tl.dot(narrow, tl.trans(half.to(dtype)), dpsi, input_precision=PRECISION)
        dhalf = dnew + tl.dot(tl.trans(psi), narrow, input_precision=PRECISION)
        narrow = dhalf.to(dtype)
        dtheta = tl.dot(tl.trans(narrow), logits, dtheta, input_precision=PRECISION)
        dlogits = dhalf + tl.dot(narrow, theta, input_precision=PRECISION)
        if not FITS:
            dlogits = mask_pairs(dlogits, valid)
        store_logits(dlogits_ptr, item, dlogits, N, NEW_ROW, SIZE)
    store_logits(dtransforms_ptr, 2 * tl.program_id(0), dtheta, N, N, SIZE)
    store_logits(dtransforms_ptr, 2 * tl.program_id(0) + 1, dpsi, N, N, SIZE)


@torch.library.custom_op('mmlavit::less_attention', mutates_args=())
def operator(
    v: Tensor, logits: Tensor, theta: Tensor, psi: Tensor, windows: Sequence[int]
) -> tuple[Tensor, Tensor]:
    out, new = _results(v, logits)
    v = v.contiguous()
    logits, row = readable(logits)
    geometry, heads = Windows(*windows), logits.shape[1]
    forward_kernel[programs(items(geometry, heads), v.device, 6)](
        v, logits, theta.contiguous(), psi.contiguous(), out, new,
        items(geometry, heads), heads, *windows[2:],
        **constants(v, geometry, v.shape[-1] // heads), FITS=fits(geometry), ROW=row,
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return out, new


@torch.library.custom_op('mmlavit::less_attention_backward', mutates_args=())
def backward_operator(
    dout: Tensor | None,
    dnew: Tensor | None,
    v: Tensor,
    logits: Tensor,
    theta: Tensor,
    psi: Tensor,
    windows: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    dv, dlogits = _results(v, logits)
    v = v.contiguous()
    dout = torch.zeros_like(v) if dout is None else dout.contiguous()
    logits, row = readable(logits)
    dnew_read, dnew_row = (v, 0) if dnew is None else readable(dnew)
    geometry, heads = Windows(*windows), logits.shape[1]
    grid = programs(items(geometry, heads), v.device, 1)
    dtransforms = theta.new_empty(*grid, 2, *theta.shape, dtype=torch.float32)
    backward_kernel[grid](
        dout, dnew_read, v, logits, theta.contiguous(), psi.contiguous(), dv, dlogits, dtransforms,
        items(geometry, heads), heads, *windows[2:],
        **constants(v, geometry, v.shape[-1] // heads), FITS=fits(geometry), ROW=row,
        DNEW_ROW=dnew_row, HAS_DNEW=dnew is not None, num_warps=8, num_stages=1,
    )  # fmt: skip
    return dv, dlogits, dtransforms.sum(0)


@operator.register_fake
def _results(v: Tensor, logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    groups, heads, n, _n = logits.shape
    return v.new_empty(v.shape), new_logits(v, groups, heads, n)


@backward_operator.register_fake
def _backward_results(
    dout: Tensor | None, dnew: Tensor | None, v: Tensor, logits: Tensor, theta: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return *_results(v, logits), theta.new_empty(2, *theta.shape, dtype=torch.float32)


def _gradients(*args: Any) -> tuple[Tensor, ...]:
    dv, dlogits, (dtheta, dpsi) = backward_operator(*args)
    theta, psi = args[4:6]
    return dv, dlogits, dtheta.to(theta.dtype), dpsi.to(psi.dtype)


def _definition(*args: Any) -> tuple[Tensor, Tensor]:
    *tensors, windows = args
    return unwrap(definition)(*tensors, Windows(*windows))


differentiable(operator, _gradients, _definition)
