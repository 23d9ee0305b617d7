"""The halves of a block in prediction on a CPU, tile by tile (docs/performance.md).

Of what is as large as the map, only the results are made.
"""

from itertools import groupby

import torch
from torch import Tensor, nn

from .attention import LessAttention, VanillaAttention
from .ffn import ConvFFN
from .padding import ceil_divide
from .streamed_ffn import stream
from .tiles import autocast_dtype, tile_mask, tiles


def attend(
    norm: nn.Module,
    attention: VanillaAttention | LessAttention,
    x: Tensor,
    logits: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Add windowed attention to a map, some rows of windows at a time.

    Args:
        norm: What the attention sees the map through.
        attention: Either kind.
        x: Map of shape ``(B, h, w, dim)``.
        logits: What the attention starts from, ``(groups, heads, N, N)``, or None.
        mask: Booleans of shape ``(groups, N)``, true where a token is real.

    Returns:
        Map of shape ``(B, h, w, dim)`` and the attention's logits, ``(groups, heads, N, N)``.
    """
    n = attention.window
    rows, cols = ceil_divide(x.shape[1], n), ceil_divide(x.shape[2], n)
    out = x.new_empty(x.shape)
    out_logits: Tensor | None = None
    for images, lines in tiles(x, 3 * x.shape[-1], n):
        # (B * rows * cols, ...): a tile is a run of windows
        groups = slice(
            (images.start * rows + lines.start // n) * cols,
            ((images.stop - 1) * rows + ceil_divide(lines.stop, n)) * cols,
        )
        tile = x[images, lines]
        tokens, tile_logits = attention(
            norm(tile), None if logits is None else logits[groups], tile_mask(mask, groups)
        )
        torch.add(tile, tokens, out=out[images, lines])
        if tile_logits is not None:
            if out_logits is None:
                shape = (len(x) * rows * cols, *tile_logits.shape[1:])
                out_logits = tile_logits.new_empty(shape)
            out_logits[groups] = tile_logits
    return out, out_logits


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
