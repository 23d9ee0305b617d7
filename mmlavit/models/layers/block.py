"""The transformer block around either attention."""

from collections.abc import Sequence

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from .attention import WindowedAttention
from .ffn import ConvFFN
from .regions import Region, Scores
from .streamed_block import attend, feed_forward
from .tiles import is_bare


class Block(nn.Module):
    """Pre-norm block: windowed attention, then the feed-forward network.

    Args:
        attention: Either kind.
        dim: Channels of a token.
        ffn_ratio: Hidden channels of the feed-forward network over ``dim``.
        drop_path: Probability of skipping a branch of the block for an image in training.
    """

    def __init__(
        self,
        attention: WindowedAttention,
        dim: int,
        ffn_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = ConvFFN(dim, int(dim * ffn_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        logits: Scores,
        mask: Tensor | None = None,
        real: Tensor | None = None,
        regions: Sequence[Region] | None = None,
    ) -> tuple[Tensor, Scores]:
        """Transform a map and the attention logits that travel with it.

        Args:
            x: Map of shape ``(B, h, w, dim)``.
            logits: What the attention starts from, ``(groups, heads, N, N)``: the previous layer's
                logits, the previous stage's residual, or None.
            mask: Booleans of shape ``(groups, N)``, true where a token is real.
            real: Booleans of shape ``(B, h, w)``, true where a token belongs to its image, None if
                all do.
            regions: Of the map, instead of padded windows and ``mask``; logits are then one tensor
                a region.

        Returns:
            Map of shape ``(B, h, w, dim)`` and this layer's logits.
        """
        if regions is not None and self._is_streamed():
            assert not isinstance(logits, Tensor)
            x, logits = attend(self.norm1, self.attn, x, logits, regions)
            return feed_forward(self.norm2, self.ffn, x), logits
        tokens, logits = self.attn(self.norm1(x), logits, mask, regions)
        x = x + self.drop_path(tokens)
        x = x + self.drop_path(self.ffn(self.norm2(x), real))
        return x, logits

    def is_bare(self) -> bool:
        """Whether nobody hooked into the block or into its attention, or replaced the latter."""
        return is_bare(self, self.attn) and type(self.attn).forward is WindowedAttention.forward

    def _is_streamed(self) -> bool:
        """Whether to predict tile by tile."""
        return (
            not (self.training or torch.is_grad_enabled())
            and is_bare(self.norm1, *self.attn.children(), self.norm2, self.ffn)
            and self.ffn.is_plain()
        )
