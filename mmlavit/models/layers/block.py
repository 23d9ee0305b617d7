"""The transformer block around either attention."""

from torch import Tensor, nn

from mmlavit.ops import Windows

from .attention import LessAttention, VanillaAttention
from .drop_path import DropPath
from .ffn import ConvFFN
from .norm import AddNorm, Norm


class Block(nn.Module):
    """Pre-norm block: attention within windows, then the feed-forward network.

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
        self.norm1 = Norm(dim)
        self.attn = attention
        self.norm2 = AddNorm(dim)
        self.ffn = ConvFFN(dim, int(dim * ffn_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, logits: Tensor | None, windows: Windows
    ) -> tuple[Tensor, Tensor | None]:
        """Transform a map ``(B, h, w, dim)`` and the logits that travel with it.

        The logits are ``(groups, heads, N, N)``: the previous layer's, the previous stage's
        residual, or None.
        """
        attended, logits = self.attn(self.norm1(x), logits, windows)
        x, normed = self.norm2(x, self.drop_path(attended))
        return x + self.drop_path(self.ffn(normed)), logits
