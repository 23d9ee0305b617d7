"""Feed-forward network with a depthwise convolution (docs/paper_to_code.md, decision 8)."""

from torch import Tensor, nn

from mmlavit import ops


class ConvGELU(nn.Conv2d):
    """3x3 depthwise convolution of a map, and the GELU behind it.

    Args:
        dim: Channels of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a map ``(B, h, w, dim)`` that keeps its shape."""
        return ops.conv_gelu(x, self.weight, self.bias)


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
        self.hidden_dim = hidden_dim
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = ConvGELU(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map ``(B, h, w, dim)``."""
        return ops.in_bands(lambda x: self.dwconv(self.fc1(x)), self.fc2, x, self.hidden_dim)
