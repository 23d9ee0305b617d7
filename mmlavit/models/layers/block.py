"""The transformer block around either attention."""

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from .attention import LessAttention, VanillaAttention
from .ffn import ConvFFN
from .streamed_block import attend, feed_forward
from .tiles import is_bare, is_streamed


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
        attention: VanillaAttention | LessAttention,
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
        if real is None and self._is_streamed(x):
            x, logits = attend(self.norm1, self.attn, x, logits, mask)
            return feed_forward(self.norm2, self.ffn, x), logits
        tokens, logits = self.attn(self.norm1(x), logits, mask)
        x = x + self.drop_path(tokens)
        x = x + self.drop_path(self.ffn(self.norm2(x), real))
        return x, logits

    def _is_streamed(self, x: Tensor) -> bool:
        """Whether to predict tile by tile."""
        return (
            is_streamed(x)
            and not (self.training or torch.is_grad_enabled())
            and is_bare(self.norm1, self.attn, self.norm2, self.ffn)
            and self.ffn.is_plain()
        )
