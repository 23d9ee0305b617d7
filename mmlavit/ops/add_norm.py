"""The sum of a map and a branch, and its LayerNorm."""

import torch.nn.functional as F
from torch import Tensor

from .backends import dispatched


@dispatched
def add_norm(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add a branch to a map, and normalize the channels of each token.

    Under autocast on a GPU a LayerNorm of torch gives float32. The kernel gives the type that the
    linear layer behind it would round that to.

    Args:
        x: Map ``(B, h, w, C)``.
        branch: Map ``(B, h, w, C)``, or None.
        weight: ``(C,)``.
        bias: ``(C,)``.
        eps: Added to the variance.

    Returns:
        The sum, ``x`` itself where there is no branch, and its LayerNorm: maps ``(B, h, w, C)``.
    """
    total = x if branch is None else x + branch
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)
