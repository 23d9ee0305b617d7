"""Attention residual: the logits of one stage guide the next (paper, section 3.3)."""

from typing import Any

import torch
from torch import Tensor, nn

from mmlavit import ops
from mmlavit.ops import Windows


class HeadConv(nn.Conv2d):
    """1x1 convolution over heads, computed as the matrix product that it is.

    Convolution kernels are many times slower with so few channels. It is built as any convolution,
    as adapters build a layer of the same type.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(groups, in_heads, N, N)`` to ``(groups, out_heads, N, N)``."""
        # One matrix a group: a single one for all gives a result with heads last in memory, which
        # costs two copies, and lets the C++ of torch.compile write past the end of a buffer.
        weight = self.weight.flatten(1).expand(x.shape[0], -1, -1)
        # (groups, out_heads, in_heads) x (groups, in_heads, N * N)
        return torch.bmm(weight, x.flatten(2)).unflatten(2, x.shape[2:])


class AttentionResidual(nn.Module):
    """Downsample logits to the next stage's map: ``LS(Conv1x1(Norm(DWConv(A))))`` (paper, eq. 6).

    Args:
        in_heads: Heads of the previous stage.
        out_heads: Heads of the next stage.
    """

    def __init__(self, in_heads: int, out_heads: int) -> None:
        super().__init__()
        # Four taps of a cell of queries by four of a cell of keys, each row by row.
        self.kernel = nn.Parameter(torch.empty(in_heads, 4, 4))
        self.proj = HeadConv(in_heads, out_heads, 1, bias=False)
        self.layer_scale = nn.Parameter(torch.full((out_heads,), 0.1))  # CaiT's start value
        nn.init.normal_(self.kernel, std=(2 / 16) ** 0.5)  # fan-out normal

    def forward(self, logits: Tensor, windows: Windows, next_windows: Windows) -> Tensor:
        """Downsample the last logits of a stage.

        Args:
            logits: ``(groups, in_heads, N, N)``.
            windows: Of the previous stage's map.
            next_windows: Of the next stage's map.

        Returns:
            ``(next groups, out_heads, N', N')``.
        """
        residual = ops.attention_residual(logits, self.kernel, windows, next_windows)
        return self.proj(residual.to(self.kernel.dtype)) * self.layer_scale[:, None, None]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the kernel of version 0.1.0, ``(in_heads, 2, 2, 2, 2)``, as well."""
        kernel = state_dict.get(prefix + 'kernel')
        if kernel is not None and kernel.dim() == 5:
            state_dict[prefix + 'kernel'] = kernel.flatten(3).flatten(1, 2)
        super()._load_from_state_dict(state_dict, prefix, *args)
