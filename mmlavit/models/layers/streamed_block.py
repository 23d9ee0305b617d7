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
    for i, (lines, columns, window) in enumerate(regions):
        part, out_part = x[:, lines, columns], out[:, lines, columns]
        start = None if scores is None else scores[i]
        done = _attend_region(norm, attention, part, start, window, out_part)
        if done is not None:
            logits.append(done)
    return out, logits or None


def _attend_region(
    norm: nn.Module,
    attention: WindowedAttention,
    x: Tensor,
    scores: Tensor | None,
    window: tuple[int, int],
    out: Tensor,
) -> Tensor | None:
    """Fill ``out``, shaped ``(B, h, w, dim)`` like ``x``; returns the logits."""
    rows, cols = x.shape[1] // window[0], x.shape[2] // window[1]
    logits: Tensor | None = None
    for images, lines in tiles(x, 3 * x.shape[-1], window[0]):
        # (B * rows * cols, ...): a tile is a run of windows
        groups = slice(
            (images.start * rows + lines.start // window[0]) * cols,
            ((images.stop - 1) * rows + lines.stop // window[0]) * cols,
        )
        tile = x[images, lines]
        region = Region(slice(0, tile.shape[1]), slice(0, tile.shape[2]), window)
        tokens, found = attention(
            norm(tile), None if scores is None else [scores[groups]], None, [region]
        )
        torch.add(tile, tokens, out=out[images, lines])
        if found is not None:
            (found,) = found
            if logits is None:
                logits = found.new_empty(len(x) * rows * cols, *found.shape[1:])
            logits[groups] = found
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
