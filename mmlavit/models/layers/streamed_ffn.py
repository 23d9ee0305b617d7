"""The feed-forward network on a CPU, some rows at a time (docs/performance.md).

The hidden map is four times as wide as the tokens. Where memory is fresh from the system, touching
it costs more than the arithmetic on it, so it is worked on in tiles that stay in the cache.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .second_order import differentiable_gradients
from .tiles import tiles


def stream(rows: Iterable[Tensor], height: int, parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    """Predict row by row all but the second linear layer, without the hidden map.

    A row comes out when the one below it is known, so the last row of a tile comes with the next.

    Args:
        rows: Consecutive rows of maps, each of shape ``(B, rows, w, dim)`` with at least 2 rows
            but for the last. Several maps come whole, in one tile.
        height: Rows in all.
        parameters: Weight and bias of the first linear layer and the convolution.

    Yields:
        Consecutive rows of what the second linear layer reads, ``(B, rows, w, hidden)``.
    """
    weight1, bias1, kernel, kernel_bias = parameters
    above: Tensor | None = None  # the last two hidden rows of the tile before
    done = 0
    for tile in rows:
        done += tile.shape[1]
        overlap = 0 if above is None else 2
        batch, rows_in_tile, width, dim = tile.shape
        hidden = tile.new_empty(batch, overlap + rows_in_tile, width, len(weight1))
        if above is not None:
            hidden[:, :2] = above
        # one image, or no overlap: (B * rows * w, dim) x (dim, hidden) fills a run of memory
        new = hidden[:, overlap:].view(-1, len(weight1))
        torch.addmm(bias1, tile.reshape(-1, dim), weight1.T, out=new)
        conv = _convolve(hidden, kernel, kernel_bias)
        # at a cut, the convolution has padded where a row of another tile belongs
        first, last = int(above is not None), conv.shape[1] - int(done < height)
        # what is released here, the next tile finds in the cache: so keep a copy, not all rows
        above = hidden[:, -2:].clone()
        del hidden, new
        out = torch.ops.aten.gelu_(conv[:, first:last])
        del conv
        yield out
        del out


class StreamedFFN(torch.autograd.Function):
    """``fc2(gelu(dwconv(fc1(x))))``; of the hidden maps, only the first is kept for the gradient.

    Convolution and GELU are computed again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        kernel: Tensor,
        kernel_bias: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        """Transform a map of shape ``(B, h, w, dim)``."""
        hidden = F.linear(x, weight1, bias1)  # (B, h, w, hidden)
        out = x.new_empty(x.shape)
        for images, rows in tiles(x, len(weight1), 1):
            activated = torch.ops.aten.gelu_(
                _convolve_tile(hidden[images], rows, kernel, kernel_bias)
            )
            tile = out[images, rows].view(-1, len(weight2))  # (tokens, dim)
            torch.addmm(bias2, activated.flatten(0, -2), weight2.T, out=tile)
        ctx.save_for_backward(hidden, x, weight1, bias1, kernel, kernel_bias, weight2, bias2)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients of all inputs, for one of the output ``(B, h, w, dim)``."""
        hidden, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(_plain, inputs, [grad])
        x, weight1, _, kernel, kernel_bias, weight2, _ = inputs
        # a frozen layer needs none
        learns1, learns_conv, learns2 = (any(ctx.needs_input_grad[i : i + 2]) for i in (1, 3, 5))
        parameters = (weight1, weight1[:, 0], kernel, kernel_bias, weight2, weight2[:, 0])
        # sums over many tiles: in float32 or better
        sums = [torch.zeros_like(p, dtype=_wide(p)) for p in parameters]
        grad_x = x.new_empty(x.shape)
        height = x.shape[1]
        tail = (kernel, kernel_bias, weight2)
        tail_sums = (sums[2:4] if learns_conv else [], sums[4:] if learns2 else [])
        for images, group in groupby(tiles(x, len(weight1), 1), key=lambda tile: tile[0]):
            partial: Tensor | None = None  # gradients of two hidden rows that the next tile adds to
            for _, rows in group:
                grad_hidden = _tail_backward(grad[images], hidden[images], rows, tail, *tail_sums)
                if partial is not None:
                    grad_hidden[:, :2] += partial
                if rows.stop < height:
                    partial = grad_hidden[:, -2:].clone()
                    grad_hidden = grad_hidden[:, :-2]
                first = max(rows.start - 1, 0)
                done = slice(first, first + grad_hidden.shape[1])
                tile = grad_x[images, done].view(-1, weight1.shape[1])  # (tokens, dim)
                torch.mm(grad_hidden.flatten(0, -2), weight1, out=tile)
                if learns1:
                    _add_linear_gradients(grad_hidden, x[images, done], *sums[:2])
                del grad_hidden
        return (grad_x, *(s.to(p.dtype) for s, p in zip(sums, parameters, strict=True)))


def _tail_backward(
    grad: Tensor,
    hidden: Tensor,
    rows: slice,
    parameters: tuple[Tensor, ...],
    conv_sums: Sequence[Tensor],
    linear_sums: Sequence[Tensor],
) -> Tensor:
    """Go back through second linear layer, GELU and convolution, for some rows of the output.

    Args:
        grad: Of the output, ``(B, h, w, dim)``.
        hidden: Input of the convolution, ``(B, h, w, hidden)``.
        rows: Of the output.
        parameters: Kernel and bias of the convolution, weight of the linear layer.
        conv_sums: Gradients of kernel and bias to add to; empty if they are frozen.
        linear_sums: The same, of the linear layer.

    Returns:
        Gradient of the hidden rows that the tile reads, ``(B, rows + 2, w, hidden)``; at the upper
        and lower border of the map one row less.
    """
    kernel, kernel_bias, weight2 = parameters
    conv = _convolve_tile(hidden, rows, kernel, kernel_bias)
    grad = grad[:, rows]
    if linear_sums:
        _add_linear_gradients(grad, F.gelu(conv), *linear_sums)
    first, last = max(rows.start - 1, 0), min(rows.stop + 1, hidden.shape[1])
    around = hidden[:, first:last]
    grad_conv = torch.empty_like(around)
    # rows outside the tile get no gradient from it
    grad_conv[:, : rows.start - first] = 0
    grad_conv[:, rows.stop - first :] = 0
    inside = grad_conv[:, rows.start - first : rows.stop - first]
    # one image, or all rows: (B * rows * w, dim) x (dim, hidden) fills a run of memory
    torch.mm(grad.flatten(0, -2), weight2, out=inside.view(-1, len(kernel)))
    torch.ops.aten.gelu_backward(inside, conv, grad_input=inside)
    del conv
    grad_hidden, *grads = _convolve_backward(grad_conv, around, kernel, bool(conv_sums))
    for total, part in zip(conv_sums, grads, strict=False):
        total += part
    return grad_hidden


def _plain(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    kernel: Tensor,
    kernel_bias: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> tuple[Tensor]:
    """The definition, for maps of shape ``(B, h, w, dim)``."""
    conv = _convolve(F.linear(x, weight1, bias1), kernel, kernel_bias)
    return (F.linear(F.gelu(conv), weight2, bias2),)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _convolve(hidden: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Depthwise convolution of ``(B, h, w, hidden)``, channels-last on both sides: no copy."""
    x = hidden.permute(0, 3, 1, 2)
    return F.conv2d(x, kernel, bias, padding=1, groups=len(kernel)).permute(0, 2, 3, 1)


def _convolve_tile(hidden: Tensor, rows: slice, kernel: Tensor, bias: Tensor) -> Tensor:
    """The convolution's output in some rows of ``(B, h, w, hidden)``."""
    first, last = max(rows.start - 1, 0), min(rows.stop + 1, hidden.shape[1])
    conv = _convolve(hidden[:, first:last], kernel, bias)
    return conv[:, rows.start - first : rows.stop - first]


def _convolve_backward(
    grad: Tensor, hidden: Tensor, kernel: Tensor, learns: bool
) -> tuple[Tensor, ...]:
    """Gradients of hidden rows ``(B, rows, w, hidden)`` and, if it learns, kernel and bias."""
    grad_hidden, grad_kernel, grad_bias = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        hidden.permute(0, 3, 1, 2),
        kernel,
        [len(kernel)],
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        len(kernel),
        [True, learns, learns],
    )
    return grad_hidden.permute(0, 2, 3, 1), grad_kernel, grad_bias


def _add_linear_gradients(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Add to a linear layer's gradients, for those of ``(..., out)`` and inputs ``(..., in)``."""
    grad, x = grad.flatten(0, -2), x.flatten(0, -2)
    weight.addmm_(grad.T.to(weight.dtype), x.to(weight.dtype))
    bias += grad.sum(0, dtype=bias.dtype)
