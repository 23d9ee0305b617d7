"""From the tokens of a stage to the layout that necks and heads read."""

from typing import Any

import torch
from torch import Tensor

from .tiles import is_streamed

# A transposition needs a token's line of memory again for each of its next channels: of so many
# tokens, the lines stay in the cache.
CHUNK = 1024


def channels_first(x: Tensor) -> Tensor:
    """Put the channels of a map first.

    Args:
        x: Map of shape ``(B, h, w, C)``.

    Returns:
        Map of shape ``(B, C, h, w)``, contiguous: RoIAlign reads raw memory, so that a permuted
        view would come out as garbage.
    """
    if is_streamed(x):
        return _ChannelsFirst.apply(x)
    return x.permute(0, 3, 1, 2).contiguous()


class _ChannelsFirst(torch.autograd.Function):
    """The same for a CPU, some tokens at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        out = x.new_empty(batch, channels, height, width)
        # (B, h * w, C) -> (B, C, h * w)
        source, target = x.flatten(1, 2).mT, out.flatten(2)
        for first in range(0, height * width, CHUNK):
            part = slice(first, first + CHUNK)
            target[:, :, part] = source[:, :, part]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.permute(0, 2, 3, 1)
