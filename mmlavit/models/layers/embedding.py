"""What leads into a stage: patch embedding and downsampling (paper, section 3.1)."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmlavit.ops.windows import ceil_divide, is_multiple


class PatchEmbed(nn.Module):
    """Project non-overlapping patches by a convolution whose kernel is its stride, then normalize.

    Sides that are no multiple of the patch are completed with zeros, so a map of side ``s`` gives
    one of side ``ceil(s / patch)``.

    Args:
        in_channels: Channels of the incoming map.
        out_channels: Channels of the tokens.
        patch: Side of a patch: 4 before stage 1, 2 before the others.
    """

    def __init__(self, in_channels: int, out_channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_channels, out_channels, patch, patch)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Embed a map ``(B, h, w, in_channels)`` as ``(B, h / patch, w / patch, out_channels)``."""
        h, w = x.shape[1:3]
        if not (is_multiple(h, self.patch) and is_multiple(w, self.patch)):
            rows, cols = ceil_divide(h, self.patch), ceil_divide(w, self.patch)
            x = F.pad(x, (0, 0, 0, cols * self.patch - w, 0, rows * self.patch - h))
        x = self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(x)
