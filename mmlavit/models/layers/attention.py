"""Vanilla attention and the less attention that replaces it (paper, section 3.2)."""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from .resize import resize_transform
from .scores import key_bias, saturate, softmax, transform
from .windows import merge, partition


def is_window_transform(key: str) -> bool:
    """Tell whether a state dict's key names a transform that is resized on loading."""
    return key.rpartition('.')[2] in ('theta', 'psi')


class VanillaAttention(nn.Module):
    """Windowed multi-head self-attention that hands its logits on (paper, eq. 1 to 4).

    ``A = Q K^T / sqrt(d) + residual``, output ``softmax(A) V``.

    Args:
        dim: Channels of a token.
        num_heads: Heads; divides ``dim``.
        window: Side of a window in tokens.

    Raises:
        ValueError: If ``dim`` is no multiple of ``num_heads`` or ``window`` is below 1.
    """

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        _check_shape(dim, num_heads, window)
        self.num_heads = num_heads
        self.window = window
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within each window.

        Args:
            x: Map of shape ``(B, h, w, dim)``.
            residual: Scores of the previous stage, shape ``(groups, heads, N, N)``, added to the
                logits (paper, eq. 7).
            mask: Booleans of shape ``(groups, N)``, true where a token is real.

        Returns:
            Map of shape ``(B, h, w, dim)`` and logits of shape ``(groups, heads, N, N)``; logits of
            padded tokens carry no meaning.
        """
        q, k, v = self._project(x)
        logits = self._score(q, k, residual)
        # (groups, heads, N, N) x (groups, heads, N, d) -> (groups, heads, N, d)
        out = softmax(logits, mask).to(v.dtype) @ v
        return self.proj(merge(out, self.window, x.shape)), logits

    def scores(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute the logits alone, also where :meth:`forward` does not hand them on.

        Args:
            x: Map of shape ``(B, h, w, dim)``.
            residual: Scores of the previous stage, shape ``(groups, heads, N, N)``.

        Returns:
            Logits of shape ``(groups, heads, N, N)``; those of padded tokens carry no meaning.
        """
        q, k, _ = self._project(x)
        return self._score(q, k, residual)

    def _score(self, q: Tensor, k: Tensor, residual: Tensor | None) -> Tensor:
        logits = saturate((q * self.scale) @ k.mT)  # (groups, heads, N, N)
        if residual is not None:
            logits = saturate((logits + residual).to(logits.dtype))
        return logits

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of a map, each ``(groups, heads, N, d)``."""
        parts = self.qkv(x).chunk(3, dim=-1)
        return tuple(partition(part, self.window, self.num_heads) for part in parts)


class FusedVanillaAttention(VanillaAttention):
    """Vanilla attention whose logits no later layer reads: they are never written to memory."""

    def forward(
        self, x: Tensor, residual: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as :class:`VanillaAttention` does, and return None for the logits."""
        q, k, v = self._project(x)
        bias = None if residual is None else residual.to(q.dtype)
        if mask is not None:
            keys = key_bias(mask, q.dtype)
            bias = keys if bias is None else bias + keys
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if torch.compiler.is_exporting():
            # the exporter's own attention has another memory layout, which a later view depends on
            out = out.clone(memory_format=torch.contiguous_format)
        return self.proj(merge(out, self.window, x.shape)), None


class LessAttention(nn.Module):
    """Windowed attention whose logits are transformed from the previous layer's (paper, eq. 5).

    ``A^l = Psi A^{l-1} Theta^T``, output ``softmax(A^l) V``. Tokens give the values only: there are
    no queries and no keys. The paper writes ``Psi(Theta(A)^T)^T`` with both acting on rows.

    ``theta`` and ``psi`` hold the deviation from the identity, so that a new layer reuses the
    scores as they are and weight decay pulls back to that rather than to zero.

    Args:
        dim: Channels of a token.
        num_heads: Heads; divides ``dim``.
        window: Side of a window in tokens; ``N`` is its square.

    Raises:
        ValueError: If ``dim`` is no multiple of ``num_heads`` or ``window`` is below 1.
    """

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        _check_shape(dim, num_heads, window)
        self.num_heads = num_heads
        self.window = window
        self.theta = nn.Parameter(torch.zeros(window**2, window**2))
        self.psi = nn.Parameter(torch.zeros(window**2, window**2))
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, logits: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend within each window by the transformed logits.

        Args:
            x: Map of shape ``(B, h, w, dim)``.
            logits: Scores of the previous layer, shape ``(groups, heads, N, N)``.
            mask: Booleans of shape ``(groups, N)``, true where a token is real.

        Returns:
            Map of shape ``(B, h, w, dim)`` and logits of shape ``(groups, heads, N, N)``; logits of
            padded tokens carry no meaning.
        """
        v = partition(self.v(x), self.window, self.num_heads)  # (groups, heads, N, d)
        logits = saturate(logits.to(v.dtype))
        eye = torch.eye(len(self.theta), dtype=self.theta.dtype, device=x.device)
        theta, psi = (eye + self.theta).to(v.dtype), (eye + self.psi).to(v.dtype)
        logits = transform(logits, theta, psi, mask)
        # (groups, heads, N, N) x (groups, heads, N, d) -> (groups, heads, N, d)
        out = softmax(logits, mask).to(v.dtype) @ v
        return self.proj(merge(out, self.window, x.shape)), logits

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


def _check_shape(dim: int, num_heads: int, window: int) -> None:
    if num_heads < 1 or dim < 1 or dim % num_heads:
        raise ValueError(
            f'num_heads={num_heads!r}: expected a whole number that divides dim={dim!r}'
        )
    if window < 1:
        raise ValueError(f'window={window!r}: expected a whole number of at least 1')
