"""Vanilla attention and the less attention that replaces it (paper, section 3.2)."""

import logging
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .resize import resize_transform


def is_window_transform(key: str) -> bool:
    """Tell whether a state dict's key names a transform that is resized on loading."""
    return key.rpartition('.')[2] in ('theta', 'psi')


def _saturate(logits: Tensor) -> Tensor:
    """Keep half-precision logits finite: past 65504 a softmax has long been one-hot."""
    if logits.dtype is not torch.float16:
        return logits
    limit = torch.finfo(torch.float16).max
    return logits.clamp(-limit, limit)


def _attend(logits: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Aggregate the values: ``softmax(A) V``, with the softmax in float32 or better.

    Args:
        logits: Scores of shape ``(groups, heads, N, N)``.
        v: Values of shape ``(groups, N, dim)``.
        mask: Booleans of shape ``(groups, N)``, true where a token is real.

    Returns:
        Tokens of shape ``(groups, N, dim)``.
    """
    groups, heads, n, _ = logits.shape
    if mask is not None:
        # the lowest finite value, so that a group without any real token gives no NaN
        lowest = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(~mask[:, None, None, :], lowest)
    attn = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(v.dtype)
    v = v.view(groups, n, heads, -1).transpose(1, 2)  # (groups, heads, N, d)
    # (groups, heads, N, N) x (groups, heads, N, d) -> (groups, N, heads, d) -> (groups, N, dim)
    return (attn @ v).transpose(1, 2).reshape(groups, n, -1)


class VanillaAttention(nn.Module):
    """Multi-head self-attention that hands its logits on (paper, eq. 1 to 4).

    ``A = Q K^T / sqrt(d) + residual``, output ``softmax(A) V``.

    Args:
        dim: Channels of a token.
        num_heads: Heads; divides ``dim``.

    Raises:
        ValueError: If ``dim`` is no multiple of ``num_heads``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend within each group.

        Args:
            x: Tokens of shape ``(groups, N, dim)``.
            residual: Scores of the previous stage, shape ``(groups, heads, N, N)``, added to the
                logits (paper, eq. 7).
            mask: Booleans of shape ``(groups, N)``, true where a token is real.

        Returns:
            Tokens of shape ``(groups, N, dim)`` and logits of shape ``(groups, heads, N, N)``;
            logits of padded tokens carry no meaning.
        """
        groups, n, dim = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        # (groups, N, dim) -> (groups, heads, N, d) and (groups, heads, d, N)
        q = (q * self.scale).view(groups, n, self.num_heads, -1).transpose(1, 2)
        k = k.view(groups, n, self.num_heads, -1).permute(0, 2, 3, 1)
        logits = _saturate(q @ k)  # (groups, heads, N, N)
        if residual is not None:
            logits = _saturate((logits + residual).to(logits.dtype))
        return self.proj(_attend(logits, v, mask)), logits


class LessAttention(nn.Module):
    """Attention whose logits are transformed from the previous layer's (paper, eq. 5).

    ``A^l = Psi A^{l-1} Theta^T``, output ``softmax(A^l) V``. Tokens give the values only: there are
    no queries and no keys. The paper writes ``Psi(Theta(A)^T)^T`` with both acting on rows.

    ``theta`` and ``psi`` hold the deviation from the identity, so that a new layer reuses the
    scores as they are and weight decay pulls back to that rather than to zero.

    Args:
        dim: Channels of a token.
        num_heads: Heads; divides ``dim``.
        num_tokens: Tokens of a group, ``N``.

    Raises:
        ValueError: If ``dim`` is no multiple of ``num_heads`` or ``num_tokens`` is below 1.
    """

    def __init__(self, dim: int, num_heads: int, num_tokens: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        if num_tokens < 1:
            raise ValueError(f'num_tokens={num_tokens!r}: expected a whole number of at least 1')
        self.num_heads = num_heads
        self.theta = nn.Parameter(torch.zeros(num_tokens, num_tokens))
        self.psi = nn.Parameter(torch.zeros(num_tokens, num_tokens))
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, logits: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend within each group by the transformed logits.

        Args:
            x: Tokens of shape ``(groups, N, dim)``.
            logits: Scores of the previous layer, shape ``(groups, heads, N, N)``.
            mask: Booleans of shape ``(groups, N)``, true where a token is real.

        Returns:
            Tokens of shape ``(groups, N, dim)`` and logits of shape ``(groups, heads, N, N)``;
            logits of padded tokens carry no meaning.
        """
        v = self.v(x)
        logits = _saturate(logits.to(v.dtype))
        if mask is not None:
            # a transform mixes all tokens of a group: what padding says must be silent before
            pairs = mask[:, None, :, None] & mask[:, None, None, :]  # (groups, 1, N, N)
            logits = logits.masked_fill(~pairs, 0)
        eye = torch.eye(len(self.theta), dtype=self.theta.dtype, device=x.device)
        logits = _saturate(logits @ (eye + self.theta).T)  # (groups, heads, N, N) x (N, N)
        logits = _saturate((eye + self.psi) @ logits)  # (N, N) x (groups, heads, N, N)
        return self.proj(_attend(logits, v, mask)), logits

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize the transforms of another window size (docs/paper_to_code.md, row 1)."""
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


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim < 1 or dim % num_heads:
        raise ValueError(
            f'num_heads={num_heads!r}: expected a whole number that divides dim={dim!r}'
        )
