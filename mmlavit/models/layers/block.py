"""The transformer block around either attention."""

from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from .ffn import ConvFFN
from .windows import merge, partition


class Block(nn.Module):
    """Pre-norm block: windowed attention, then the feed-forward network.

    Args:
        attention: Takes ``(tokens, logits, mask)`` and returns ``(tokens, logits)``.
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
        self, x: Tensor, logits: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Transform a map and the attention logits that travel with it.

        Args:
            x: Map of shape ``(B, h, w, dim)``.
            logits: What the attention starts from, ``(groups, heads, N, N)``: the previous layer's
                logits, the previous stage's residual, or None.
            mask: Booleans of shape ``(groups, N)``, true where a token is real.

        Returns:
            Map of shape ``(B, h, w, dim)`` and this layer's logits, ``(groups, heads, N, N)``.
        """
        tokens = partition(self.norm1(x), self.window)  # (groups, N, dim)
        tokens, logits = self.attn(tokens, logits, mask)
        x = x + self.drop_path(merge(tokens, self.window, (x.shape[1], x.shape[2])))
        x = x + self.drop_path(self.ffn(self.norm2(x)))
        return x, logits
