"""One stage: embed, take over the previous stage's attention, then blocks of both kinds."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention_residual import AttentionResidual
from .block import Block
from .embedding import PatchEmbed
from .padding import real_patches
from .regions import Scores, regions
from .tiles import is_eager, is_streamed
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
        self, x: Tensor, logits: Scores, mask: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Scores, Tensor | None, Tensor | None]:
        """Run the stage.

        Args:
            x: The previous stage's map (or the image), ``(B, h, w, in_channels)``.
            logits: The previous stage's last logits, ``(groups, in_heads, N, N)``, or one tensor a
                region (:mod:`~.regions`).
            mask: The previous stage's mask, ``(groups, N)``, true where a token is real.
            real: Booleans of shape ``(B, h, w)``, true where a token of ``x`` belongs to its image,
                None if all do.

        Returns:
            Map of shape ``(B, h', w', channels)``, the last logits, ``(groups', heads, N', N')`` or
            one tensor a region, and mask and ``real`` of this stage.
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
        fitted = regions(out_size, self.window) if self._is_fitted(x, real) else None
        start: Scores = None
        if self.residual is not None:
            start = self.residual(logits, in_shape, in_mask, mask, fitted is not None)
        for i, block in enumerate(self.blocks):
            if i < self.num_vanilla:
                # only the first vanilla layer is guided by the previous stage (paper, eq. 7)
                logits = start if i == 0 else None
            if self.with_cp and torch.is_grad_enabled():
                x, logits = checkpoint(block, x, logits, mask, real, fitted, use_reentrant=False)
            else:
                x, logits = block(x, logits, mask, real, fitted)
        return x, logits, mask, real

    def _is_fitted(self, x: Tensor, real: Tensor | None) -> bool:
        """Whether windows fit the map: on a CPU, where nobody reads the logits of whole windows.

        On the meta device they do too: benchmarks count there what a CPU computes.
        """
        if real is not None or not (is_streamed(x) or (x.is_meta and is_eager())):
            return False
        return all(isinstance(block, Block) and block.is_bare() for block in self.blocks)
