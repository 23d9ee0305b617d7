"""Feed-forward network with a depthwise convolution (docs/paper_to_code.md, decision 8)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .streamed_ffn import StreamedFFN
from .tiles import autocast_dtype, is_bare, is_streamed


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

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Transform a map.

        Args:
            x: Map of shape ``(B, h, w, dim)``.
            real: Booleans of shape ``(B, h, w)``, true where a token belongs to its image, None if
                all do. To the convolution the rest is the zero padding around an image.

        Returns:
            Map of shape ``(B, h, w, dim)``.
        """
        if real is None and is_streamed(x) and self.is_plain():
            return StreamedFFN.apply(x.to(autocast_dtype(x)), *self.cast_layers(x))
        hidden = self.fc1(x)
        if real is not None:
            hidden = hidden.masked_fill(~real[..., None], 0)
        if not (self.training and torch.is_grad_enabled()):
            return self._tail(hidden)
        # only `hidden` is kept: the recomputation stops before the last matrix product
        return checkpoint(self._tail, hidden, use_reentrant=False, preserve_rng_state=False)

    def _tail(self, hidden: Tensor) -> Tensor:
        # channels-last in memory on both sides of the convolution: no copy
        hidden = self.dwconv(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(hidden))

    def is_plain(self) -> bool:
        """Whether the weights say all: no hook, adapter or quantized layer wants to be called."""
        layers = (self.fc1, self.dwconv, self.fc2)
        kinds = (nn.Linear, nn.Conv2d, nn.Linear)
        return tuple(map(type, layers)) == kinds and is_bare(*layers)

    def cast_layers(self, x: Tensor) -> tuple[Tensor, ...]:
        """Weight and bias of each of the three layers, in the type that ``x`` is computed in."""
        first, conv, second = self.fc1, self.dwconv, self.fc2
        assert conv.bias is not None
        layers = (first.weight, first.bias, conv.weight, conv.bias, second.weight, second.bias)
        return tuple(layer.to(autocast_dtype(x)) for layer in layers)
