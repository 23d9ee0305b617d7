"""One stage: embed, take over the previous stage's attention, then blocks of both kinds."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention_residual import AttentionResidual
from .block import Block
from .embedding import PatchEmbed
from .windows import real_tokens


class Stage(nn.Module):
    """A stage of LaViT (paper, figure 1).

    Args:
        embed: Patch embedding or downsampling.
        residual: Attention residual from the previous stage, None for none.
        blocks: Blocks with vanilla attention first, then with less attention.
        num_vanilla: How many of ``blocks`` start from their own queries and keys.
        window: Side of a window in tokens.
        with_cp: Whether to recompute the blocks' activations in the backward pass.
    """

    def __init__(
        self,
        embed: PatchEmbed,
        residual: AttentionResidual | None,
        blocks: list[Block],
        num_vanilla: int,
        window: int,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.residual = residual
        self.blocks = nn.ModuleList(blocks)
        self.num_vanilla = num_vanilla
        self.window = window
        self.with_cp = with_cp

    def forward(self, x: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the stage.

        Args:
            x: The previous stage's map (or the image), ``(B, h, w, in_channels)``.
            logits: The previous stage's last logits, ``(groups, in_heads, N, N)``.

        Returns:
            Map of shape ``(B, h', w', channels)`` and the last logits, ``(groups', heads, N',
            N')``.
        """
        size = (x.shape[1], x.shape[2])
        x = self.embed(x)
        start = None
        if self.residual is not None:
            assert logits is not None
            start = self.residual(logits, size)
        mask = real_tokens((x.shape[1], x.shape[2]), self.window, x.device)
        if mask is not None:
            mask = mask.repeat(len(x), 1)  # (B * windows, N)
        for i, block in enumerate(self.blocks):
            if i < self.num_vanilla:
                # only the first vanilla layer is guided by the previous stage (paper, eq. 7)
                logits = start if i == 0 else None
            if self.with_cp and torch.is_grad_enabled():
                x, logits = checkpoint(block, x, logits, mask, use_reentrant=False)
            else:
                x, logits = block(x, logits, mask)
        assert logits is not None
        return x, logits
