# mypy: allow-untyped-defs, allow-incomplete-defs
"""A sum and its LayerNorm in one kernel forward and one backward.

A program holds whole tokens, so that each is read once. The backward pass adds and normalizes
again: what is kept are the arguments, of which the branch is the narrower copy of the sum.
"""

from inspect import unwrap
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..add_norm import add_norm as definition
from .autograd import differentiable
from .shared import programs

TILE = 2048  # numbers that a program holds of one map


def add_norm(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute what the definition of this name says."""
    device = x.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    total, normed = operator(x, branch, weight, bias, eps, narrow)
    return x if branch is None else total, normed


@triton.jit
def tokens_of(tile, tokens, channels, TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    """Places of the numbers of a tile, ``(TOKENS, BLOCK)``, and which of them there are."""
    token = tl.cast(tile, tl.int64) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, BLOCK)
    at = token[:, None] * channels + channel[None, :]
    return at, (token < tokens)[:, None] & (channel < channels)[None, :]


@triton.jit
def normalized(x_ptr, branch_ptr, at, mask, channels, eps, HAS_BRANCH: tl.constexpr):
    """The sum, its tokens with zero mean and unit variance, and what they were multiplied by."""
    total = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        total += tl.load(branch_ptr + at, mask=mask, other=0.0).to(tl.float32)
    centered = tl.where(mask, total - (tl.sum(total, 1) / channels)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centered * centered, 1) / channels + eps)[:, None]
    return total, centered * scale, scale


@triton.jit(do_not_specialize=['tokens'])
def forward_kernel(
    x_ptr, branch_ptr, weight_ptr, bias_ptr, total_ptr, normed_ptr, tokens, channels, eps,
    HAS_BRANCH: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, mask = tokens_of(tl.program_id(0), tokens, channels, TOKENS, BLOCK)
    total, normed, _ = normalized(x_ptr, branch_ptr, at, mask, channels, eps, HAS_BRANCH)
    if HAS_BRANCH:
        tl.store(total_ptr + at, total.to(total_ptr.dtype.element_ty), mask=mask)
    channel = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)
    normed = normed * weight[None, :] + bias[None, :]
    tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['tokens'])
def backward_kernel(
    dtotal_ptr, dnormed_ptr, x_ptr, branch_ptr, weight_ptr, dx_ptr, dbranch_ptr, sums_ptr,
    tokens, channels, eps,
    HAS_DTOTAL: tl.constexpr, HAS_BRANCH: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)
    dweight = tl.zeros((TOKENS, BLOCK), tl.float32)
    dbias = tl.zeros((TOKENS, BLOCK), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        at, mask = tokens_of(tile, tokens, channels, TOKENS, BLOCK)
        _, normed, scale = normalized(x_ptr, branch_ptr, at, mask, channels, eps, HAS_BRANCH)
        dnormed = tl.load(dnormed_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dweight += dnormed * normed
        dbias += dnormed
        dnormed *= weight[None, :]
        along = (tl.sum(dnormed * normed, 1) / channels)[:, None]
        dx = scale * (dnormed - (tl.sum(dnormed, 1) / channels)[:, None] - normed * along)
        if HAS_DTOTAL:
            dx += tl.load(dtotal_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if HAS_BRANCH:
            tl.store(dbranch_ptr + at, dx.to(dbranch_ptr.dtype.element_ty), mask=mask)
    # (programs, 2, channels)
    at = sums_ptr + tl.program_id(0) * 2 * channels + channel
    tl.store(at, tl.sum(dweight, 0), mask=channel < channels)
    tl.store(at + channels, tl.sum(dbias, 0), mask=channel < channels)


@torch.library.custom_op('mmlavit::add_norm', mutates_args=())
def operator(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    narrow: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    total, normed = _results(x, branch, weight, bias, eps, narrow)
    tokens, constants = _tiles(x, branch)
    forward_kernel[(triton.cdiv(tokens, constants['TOKENS']),)](
        x.contiguous(), x if branch is None else branch.contiguous(), weight.contiguous(),
        bias.contiguous(), total, normed, tokens, x.shape[-1], eps, **constants,
    )  # fmt: skip
    return total, normed


@torch.library.custom_op('mmlavit::add_norm_backward', mutates_args=())
def backward_operator(
    dtotal: Tensor | None,
    dnormed: Tensor | None,
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    narrow: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    if branch is None:
        dtotal = None  # a compiled graph gives zeros for what nobody reads
    if dnormed is None:
        dnormed = torch.zeros_like(x)
    dx, dbranch, _ = _gradients_like(dtotal, dnormed, x, branch)
    tokens, constants = _tiles(x, branch)
    grid = programs(triton.cdiv(tokens, constants['TOKENS']), x.device, 4)
    sums = x.new_empty(*grid, 2, x.shape[-1], dtype=torch.float32)
    backward_kernel[grid](
        x if dtotal is None else dtotal.contiguous(), dnormed.contiguous(), x.contiguous(),
        x if branch is None else branch.contiguous(), weight.contiguous(), dx, dbranch, sums,
        tokens, x.shape[-1], eps, HAS_DTOTAL=dtotal is not None, **constants,
    )  # fmt: skip
    return dx, dbranch, sums.sum(0)


def _tiles(x: Tensor, branch: Tensor | None) -> tuple[int, dict[str, Any]]:
    """Tokens of a map, and what both kernels are compiled for."""
    block = triton.next_power_of_2(x.shape[-1])
    return x.numel() // x.shape[-1], dict(
        HAS_BRANCH=branch is not None, TOKENS=max(TILE // block, 1), BLOCK=block, num_warps=4,
        num_stages=1,
    )  # fmt: skip


@operator.register_fake
def _results(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    narrow: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype if branch is None else torch.promote_types(x.dtype, branch.dtype)
    # an operator of torch returns none of its arguments: without a branch, no sum
    total = x.new_empty(0 if branch is None else x.shape, dtype=dtype)
    return total, x.new_empty(x.shape, dtype=narrow or dtype)


@backward_operator.register_fake
def _gradients_like(
    dtotal: Tensor | None, dnormed: Tensor | None, x: Tensor, branch: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dbranch = x.new_empty(0) if branch is None else branch.new_empty(x.shape)
    return x.new_empty(x.shape), dbranch, x.new_empty(2, x.shape[-1], dtype=torch.float32)


def _gradients(*args: Any) -> tuple[Tensor | None, ...]:
    dx, dbranch, sums = backward_operator(*args)
    branch, weight, bias = args[3:6]
    dweight, dbias = sums[0].to(weight.dtype), sums[1].to(bias.dtype)
    return dx, None if branch is None else dbranch, dweight, dbias


def _definition(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *_: Any,
) -> tuple[Tensor | None, Tensor]:
    total, normed = unwrap(definition)(x, branch, weight, bias, eps)
    return None if branch is None else total, normed


differentiable(operator, _gradients, _definition)
