"""One stage: embed, take over the previous stage's attention, then blocks of both kinds."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlavit.ops import Windows

from .attention_residual import AttentionResidual
from .block import Block
from .embedding import PatchEmbed


class Stage(nn.Module):
    """A stage of LaViT (paper, figure 1).

    Args:
        embed: Patch embedding or downsampling.
        residual: Attention residual from the previous stage, None for none.
        blocks: Blocks with vanilla attention first, then with less attention.
        window: Side of a window in tokens.
        with_cp: Whether to recompute the blocks' activations in the backward pass.
    """

    def __init__(
        self,
        embed: PatchEmbed,
        residual: AttentionResidual | None,
        blocks: list[Block],
        window: int,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.residual = residual
        self.blocks = nn.ModuleList(blocks)
        self.window = window
        self.with_cp = with_cp

    def forward(
        self, x: Tensor, logits: Tensor | None, windows: Windows | None
    ) -> tuple[Tensor, Tensor | None, Windows]:
        """Run the stage.

        Args:
            x: The previous stage's map (or the image), ``(B, h, w, in_channels)``.
            logits: The previous stage's last logits, ``(groups, in_heads, N, N)``.
            windows: Of the previous stage's map.

        Returns:
            Map ``(B, h', w', channels)``, the last logits ``(groups', heads, N', N')``, None where
            nobody reads them, and the windows of the map.
        """
        x = self.embed(x)
        before, windows = windows, Windows(self.window, *x.shape[:3])
        logits = self.residual(logits, before, windows) if self.residual is not None else None
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x, logits = checkpoint(block, x, logits, windows, use_reentrant=False)
            else:
                x, logits = block(x, logits, windows)
        return x, logits, windows
