"""The halves of a block in prediction on a CPU, tile by tile (docs/performance.md).

Of what is as large as the map, only the results are made.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
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
        tokens, found = attention(norm(tile), start, None, inside)
        torch.add(tile, tokens, out=out[images, lines])
        del tokens  # whose memory the next tile then finds in the cache
        if found is None:
            continue
        if not logits:
            counts = [len(x) * rows * count for count in columns]
            logits = [f.new_empty(n, *f.shape[1:]) for f, n in zip(found, counts, strict=True)]
        for whole, part, run in zip(logits, found, groups, strict=True):
            whole[run] = part
        del found, part
    return logits


def feed_forward(norm: nn.Module, ffn: ConvFFN, x: Tensor) -> Tensor:
    """Add the feed-forward network to a map, in place.

    Args:
        norm: What the network sees the map through.
        ffn: The network.
        x: Map of shape ``(B, h, w, dim)``, which nobody else uses.
    """
    dtype, layers = autocast_dtype(x), ffn.cast_layers(x)
    height = x.shape[1]
    # the rows that a tile reads have not been written yet
    for images, group in groupby(tiles(x, ffn.fc1.out_features, 2), key=lambda tile: tile[0]):
        top = 0
        normed = (norm(x[images, lines]).to(dtype) for _, lines in group)
        for tile in stream(normed, height, layers):
            x[images, top : top + tile.shape[1]] += tile
            top += tile.shape[1]
    return x
