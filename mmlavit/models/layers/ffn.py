"""Feed-forward network with a depthwise convolution (docs/paper_to_code.md, row 8)."""

import torch.nn.functional as F
from torch import Tensor, nn


class ConvFFN(nn.Module):
    """Two linear layers with a 3x3 depthwise convolution and a GELU between them.

    The convolution is the model's only source of positions, at any resolution, and lets
    neighbouring windows talk (PVTv2, SegFormer).

    Args:
        dim: Channels of a token.
        hidden_dim: Channels between the two linear layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map of shape ``(B, h, w, dim)`` into one of the same shape."""
        x = self.fc1(x)
        # channels-last in memory on both sides of the convolution: no copy
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x))
