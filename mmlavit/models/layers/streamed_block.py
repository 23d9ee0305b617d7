"""The halves of a block in prediction on a CPU, tile by tile (docs/performance.md).

Of what is as large as the map, only the results are made.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import WindowedAttention
from .ffn import ConvFFN
from .regions import Region
from .streamed_ffn import stream
from .tiles import autocast_dtype, tiles


def attend(
    norm: nn.Module,
    attention: WindowedAttention,
    x: Tensor,
    scores: list[Tensor] | None,
    regions: Sequence[Region],
) -> tuple[Tensor, list[Tensor] | None]:
    """Add windowed attention to a map, some rows of windows at a time.

    Args:
        norm: What the attention sees the map through.
        attention: Either kind.
        x: Map of shape ``(B, h, w, dim)``.
        scores: What the attention starts from, ``(groups, heads, a * b, a * b)`` for each region,
            or None.
        regions: Of the map.

    Returns:
        Map of shape ``(B, h, w, dim)`` and the attention's logits like ``scores``.
    """
    out = x.new_empty(x.shape)
    logits: list[Tensor] = []
    for lines, band in groupby(enumerate(regions), lambda item: item[1].rows):
        numbers, places = zip(*band, strict=True)
        start = None if scores is None else [scores[i] for i in numbers]
        logits += _attend_band(norm, attention, x[:, lines], start, places, out[:, lines])
    return out, logits or None


def _attend_band(
    norm: nn.Module,
    attention: WindowedAttention,
    x: Tensor,
    scores: list[Tensor] | None,
    regions: Sequence[Region],
    out: Tensor,
) -> list[Tensor]:
    """Fill ``out``, shaped ``(B, h, w, dim)`` like ``x``; returns the logits of its regions.

    The regions lie side by side: their windows have one height.
    """
    height = regions[0].window[0]
    rows = x.shape[1] // height
    columns = [(cols.stop - cols.start) // width for _, cols, (_, width) in regions]
    logits: list[Tensor] = []
    for images, lines in tiles(x, 3 * x.shape[-1], height):
        tile = x[images, lines]
        # rows of windows, counted through all images
        first = images.start * rows + lines.start // height
        last = (images.stop - 1) * rows + lines.stop // height
        # (B * rows * columns, ...): a tile is a run of a region's windows
        groups = [slice(first * count, last * count) for count in columns]
        start = scores and [s[part] for s, part in zip(scores, groups, strict=True)]
        inside = [region._replace(rows=slice(0, tile.shape[1])) for region in regions]
        # known from the first tile on
        places = [whole[run] for whole, run in zip(logits, groups, strict=True)] if logits else None
        tokens, found = attention.mix(norm(tile), start, inside, places)
        _add_projection(tile, tokens, attention.proj, out[images, lines])
        del tokens  # whose memory the next tile then finds in the cache
        if found is not None and places is None:
            counts = [len(x) * rows * count for count in columns]
            logits = [f.new_empty(n, *f.shape[1:]) for f, n in zip(found, counts, strict=True)]
            places = [whole[run] for whole, run in zip(logits, groups, strict=True)]
        for place, part in zip(places or [], found or [], strict=True):
            if part is not place:
                place.copy_(part)
            del part
        del found
    return logits


def feed_forward(norm: nn.Module, ffn: ConvFFN, x: Tensor) -> Tensor:
    """Add the feed-forward network to a map, in place.

    Args:
        norm: What the network sees the map through.
        ffn: The network.
        x: Map of shape ``(B, h, w, dim)``, which nobody else uses.
    """
    dtype, (*layers, weight, bias) = autocast_dtype(x), ffn.cast_layers(x)
    height = x.shape[1]
    # the rows that a tile reads have not been written yet
    for images, group in groupby(tiles(x, ffn.fc1.out_features, 2), key=lambda tile: tile[0]):
        top = 0
        normed = (norm(x[images, lines]).to(dtype) for _, lines in group)
        for tile in stream(normed, height, layers):
            lines = slice(top, top + tile.shape[1])
            _add_linear(x[images, lines], tile, weight, bias, x[images, lines])
            del tile
            top = lines.stop
    return x


def _add_projection(x: Tensor, tokens: Tensor, proj: nn.Linear, out: Tensor) -> None:
    """Fill ``out`` with ``x + proj(tokens)``; all are maps of shape ``(B, h, w, dim)``."""
    # an adapter or a quantized layer wants to be called
    if type(proj) is nn.Linear:
        _add_linear(x, tokens, proj.weight.to(tokens.dtype), proj.bias.to(tokens.dtype), out)
    else:
        torch.add(x, proj(tokens), out=out)


def _add_linear(x: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Fill ``out``, which may be ``x``, with ``x + tokens weight^T + bias``.

    Args:
        x: Map of shape ``(B, h, w, dim)``.
        tokens: Map of shape ``(B, h, w, in)``.
        weight: Matrix of shape ``(dim, in)``.
        bias: Vector of shape ``(dim,)``.
        out: Map of shape ``(B, h, w, dim)``.
    """
    if tokens.dtype != out.dtype or not out.is_contiguous():
        torch.add(x, F.linear(tokens, weight, bias), out=out)
        return
    torch.add(x, bias, out=out)
    flat = out.view(-1, out.shape[-1])
    # (tokens, in) x (in, dim), added where the sum is kept: no copy of the bias, no other map
    torch.addmm(flat, tokens.flatten(0, -2), weight.T, out=flat)
