"""Vanilla attention: logits from queries and keys (paper, eq. 1 to 4 and 7)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import dispatched
from .logits import clamp, softmax
from .windows import Windows


@dispatched
def vanilla_attention(
    qkv: Tensor, residual: Tensor | None, windows: Windows, heads: int, keep_logits: bool
) -> tuple[Tensor, Tensor | None]:
    """``A = Q K^T / sqrt(d) + residual``, output ``softmax(A) V``.

    Args:
        qkv: Queries, keys and values side by side, map ``(B, h, w, 3 * H * d)``.
        residual: What the previous stage hands on, ``(groups, H, N, N)``, or None.
        windows: Of the map.
        heads: ``H``.
        keep_logits: Whether a later layer reads the logits. If not, torch's fused attention never
            writes them to memory.

    Returns:
        Map ``(B, h, w, H * d)`` and ``A``, ``(groups, H, N, N)``, or None; logits of padded tokens
        carry no meaning.
    """
    q, k, v = (windows.split(part, heads) for part in qkv.chunk(3, -1))  # (groups, H, N, d) each
    valid = windows.valid(q)
    if not keep_logits:
        mask = None if valid is None else valid.transpose(-2, -1) != 0  # (groups, 1, 1, N)
        if residual is not None:
            mask = residual if mask is None else residual.masked_fill(~mask, -torch.inf)
            mask = mask.to(q.dtype)
        return windows.join(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)), None
    logits = clamp((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1))
    if residual is not None:
        logits = clamp((logits + residual).to(q.dtype))
    return windows.join(softmax(logits, valid).to(q.dtype) @ v), logits
