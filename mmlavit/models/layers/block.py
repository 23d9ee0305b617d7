"""The transformer block around either attention."""

from itertools import groupby

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from .ffn import ConvFFN
from .streamed_ffn import stream
from .tiles import autocast_dtype, is_streamed, tile_mask, tiles


class Block(nn.Module):
    """Pre-norm block: windowed attention, then the feed-forward network.

    Args:
        attention: Takes ``(map, logits, mask)`` and returns ``(map, logits)``.
        dim: Channels of a token.
        window: Side of a window in tokens.
        ffn_ratio: Hidden channels of the feed-forward network over ``dim``.
        drop_path: Probability of skipping a branch of the block for an image in training.
    """

    def __init__(
        self, attention: nn.Module, dim: int, window: int, ffn_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = ConvFFN(dim, int(dim * ffn_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        logits: Tensor | None,
        mask: Tensor | None = None,
        real: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Transform a map and the attention logits that travel with it.

        Args:
            x: Map of shape ``(B, h, w, dim)``.
            logits: What the attention starts from, ``(groups, heads, N, N)``: the previous layer's
                logits, the previous stage's residual, or None.
            mask: Booleans of shape ``(groups, N)``, true where a token is real.
            real: Booleans of shape ``(B, h, w)``, true where a token belongs to its image, None if
                all do.

        Returns:
            Map of shape ``(B, h, w, dim)`` and this layer's logits, ``(groups, heads, N, N)``.
        """
        if real is None and is_streamed(x) and not (self.training or torch.is_grad_enabled()):
            return self._predict(x, logits, mask)
        tokens, logits = self.attn(self.norm1(x), logits, mask)
        x = x + self.drop_path(tokens)
        x = x + self.drop_path(self.ffn(self.norm2(x), real))
        return x, logits

    def _predict(
        self, x: Tensor, logits: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The same, tile by tile: of what is as large as the map, only the results are made."""
        n = self.window
        height, rows, cols = x.shape[1], -(-x.shape[1] // n), -(-x.shape[2] // n)
        out = x.new_empty(x.shape)
        out_logits: Tensor | None = None
        for images, lines in tiles(x, 3 * x.shape[-1], n):
            # (B * rows * cols, ...): a tile is a run of windows
            groups = slice(
                (images.start * rows + lines.start // n) * cols,
                ((images.stop - 1) * rows + -(-lines.stop // n)) * cols,
            )
            tile = x[images, lines]
            tokens, tile_logits = self.attn(
                self.norm1(tile),
                None if logits is None else logits[groups],
                tile_mask(mask, groups),
            )
            torch.add(tile, tokens, out=out[images, lines])
            if tile_logits is not None:
                if out_logits is None:
                    shape = (len(x) * rows * cols, *tile_logits.shape[1:])
                    out_logits = tile_logits.new_empty(shape)
                out_logits[groups] = tile_logits
        dtype, layers = autocast_dtype(x), self.ffn.cast_layers(x)
        # in place: the rows that a tile reads have not been written yet
        for images, group in groupby(
            tiles(x, self.ffn.fc1.out_features, 2), key=lambda tile: tile[0]
        ):
            top = 0
            normed = (self.norm2(out[images, lines]).to(dtype) for _, lines in group)
            for tile in stream(normed, height, layers):
                out[images, top : top + tile.shape[1]] += tile
                top += tile.shape[1]
        return out, out_logits
