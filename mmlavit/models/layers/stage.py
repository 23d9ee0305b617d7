"""One stage: embed, take over the previous stage's attention, then blocks of both kinds."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention_residual import AttentionResidual
from .block import Block
from .embedding import PatchEmbed
from .padding import real_patches
from .windows import window_mask


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

    def forward(
        self, x: Tensor, logits: Tensor | None, mask: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Run the stage.

        Args:
            x: The previous stage's map (or the image), ``(B, h, w, in_channels)``.
            logits: The previous stage's last logits, ``(groups, in_heads, N, N)``.
            mask: The previous stage's mask, ``(groups, N)``, true where a token is real.
            real: Booleans of shape ``(B, h, w)``, true where a token of ``x`` belongs to its image,
                None if all do.

        Returns:
            Map of shape ``(B, h', w', channels)``, the last logits, ``(groups', heads, N', N')``,
            and mask and ``real`` of this stage.
        """
        in_shape = x.shape
        if real is not None:
            x = x.masked_fill(~real[..., None], 0)
            real = real_patches(real, self.embed.patch)
        x = self.embed(x)
        out_size = (x.shape[1], x.shape[2])
        in_mask, mask = mask, window_mask(out_size, self.window, x.device, real)
        if mask is not None and real is None:
            mask = mask.repeat(x.shape[0], 1)  # (B * windows, N)
        start = None
        if self.residual is not None:
            assert logits is not None
            start = self.residual(logits, in_shape, in_mask, mask)
        for i, block in enumerate(self.blocks):
            if i < self.num_vanilla:
                # only the first vanilla layer is guided by the previous stage (paper, eq. 7)
                logits = start if i == 0 else None
            if self.with_cp and torch.is_grad_enabled():
                x, logits = checkpoint(block, x, logits, mask, real, use_reentrant=False)
            else:
                x, logits = block(x, logits, mask, real)
        return x, logits, mask, real
