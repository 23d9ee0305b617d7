"""What the formulas share: logits that stay finite, and padded tokens that do not count.

``valid`` is a mask ``(groups, 1, N, 1)``, 1 for tokens on the map and 0 for padding, or None where
all are valid (:meth:`mmlavit.ops.windows.Windows.valid`).
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def clamp(logits: Tensor) -> Tensor:
    """Keep logits finite in float16: past 65504 a softmax has long been one-hot."""
    if logits.dtype is not torch.float16:
        return logits
    limit = torch.finfo(torch.float16).max
    return logits.clamp(-limit, limit)


def mask_pairs(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Set the pairs of ``(groups, H, N, N)`` to 0 of which a token is padding."""
    return logits if valid is None else logits * (valid * valid.transpose(-2, -1))


def softmax(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Attention ``(groups, H, N, N)`` in float32 or better; padded keys get none."""
    if valid is not None:
        logits = logits.masked_fill(valid.transpose(-2, -1) == 0, -torch.inf)
    return logits.softmax(-1, dtype=at_least_float32(logits))


def at_least_float32(x: Tensor) -> torch.dtype:
    """The type in which sums over many logits are formed: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Compute in the precision of the tensors themselves, whatever autocast asks for."""
    device = x.device.type
    if not torch.amp.autocast_mode.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
