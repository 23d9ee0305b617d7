"""The depthwise convolution of the feed-forward network, and the GELU behind it."""

import torch.nn.functional as F
from torch import Tensor

from .backends import dispatched


@dispatched
def conv_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel of a map by its own 3x3 weights, then apply GELU.

    Args:
        x: Map ``(B, h, w, C)``.
        weight: ``(C, 1, 3, 3)``.
        bias: ``(C,)``, or None.

    Returns:
        Map ``(B, h, w, C)``.
    """
    # channels-last in memory on both sides of the convolution: no copy
    x = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight))
    return F.gelu(x.permute(0, 2, 3, 1))
