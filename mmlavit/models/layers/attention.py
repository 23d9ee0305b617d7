"""Vanilla attention, and the less attention that replaces it (paper, section 3.2)."""

import logging
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmlavit import ops
from mmlavit.ops import Windows

from .resize import resize_transform


class VanillaAttention(nn.Module):
    """Multi-head self-attention within windows (paper, eq. 1 to 4).

    ``A = Q K^T / sqrt(d) + residual``, output ``softmax(A) V``.

    Args:
        dim: Channels of a token.
        num_heads: Heads; divides ``dim``.
        keep_logits: Whether a later layer reads the logits, and they are returned.
    """

    def __init__(self, dim: int, num_heads: int, keep_logits: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.keep_logits = keep_logits
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, residual: Tensor | None, windows: Windows
    ) -> tuple[Tensor, Tensor | None]:
        """Attend by queries and keys.

        Args:
            x: Map ``(B, h, w, dim)``.
            residual: Guide from the previous stage (paper, eq. 7), ``(groups, heads, N, N)``.
            windows: Of the map.

        Returns:
            Map ``(B, h, w, dim)``, and the logits ``(groups, heads, N, N)`` or None.
        """
        attended, logits = ops.vanilla_attention(
            self.qkv(x), residual, windows, self.num_heads, self.keep_logits
        )
        return self.proj(attended), logits


class LessAttention(nn.Module):
    """Attention whose logits are transformed from the previous layer's (paper, eq. 5).

    ``A^l = Psi A^{l-1} Theta^T``, output ``softmax(A^l) V``. Tokens give the values only: there are
    no queries and no keys. The paper writes ``Psi(Theta(A)^T)^T`` with both acting on rows.

    ``theta`` and ``psi`` hold the deviation from the identity, so that a new layer reuses the
    logits as they are and weight decay pulls back to that rather than to zero.

    Args:
        dim: Channels of a token.
        window: Side of a window in tokens; ``N`` is its square.
    """

    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(window**2, window**2))
        self.psi = nn.Parameter(torch.zeros(window**2, window**2))
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, logits: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
        """Attend by the transformed logits.

        Args:
            x: Map ``(B, h, w, dim)``.
            logits: Of the previous layer, ``(groups, heads, N, N)``.
            windows: Of the map.

        Returns:
            Map ``(B, h, w, dim)`` and logits ``(groups, heads, N, N)``.
        """
        attended, logits = ops.less_attention(self.v(x), logits, self.theta, self.psi, windows)
        return self.proj(attended), logits

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize the transforms of another window size (docs/paper_to_code.md, decision 1)."""
        for key in (prefix + 'theta', prefix + 'psi'):
            weight = state_dict.get(key)
            if weight is not None and weight.shape != self.theta.shape:
                state_dict[key] = resize_transform(weight, len(self.theta))
                print_log(
                    f'resized {key}: {len(weight)} -> {len(self.theta)} tokens a window',
                    logger='current',
                    level=logging.INFO,
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
