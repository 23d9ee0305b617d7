"""What is measured on attention maps (docs/attention.md)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlavit import ops
from mmlavit.models import LayerTrace

from .attention_maps import attention_of

__all__ = ['diagonality_terms', 'identity_distance', 'similarity_matrix']


def similarity_matrix(layers: Sequence[LayerTrace]) -> Tensor:
    """Mean cosine similarity of the maps of layers: the paper's attention saturation.

    The map of one window and one head is one vector; padded queries and keys are left out. The
    cosines are averaged over windows and heads, head ``i`` with head ``i``.

    Args:
        layers: Of one stage and the same images.

    Returns:
        Symmetric matrix of shape ``(len(layers), len(layers))``; 1 for identical maps.

    Raises:
        ValueError: If the maps differ in shape.
    """
    shapes = {tuple(layer.logits.shape) for layer in layers}
    if len(shapes) > 1:
        raise ValueError(f'maps of different shapes cannot be compared: {sorted(shapes)}')
    # (layers, groups, heads, N * N)
    maps = F.normalize(torch.stack([attention_of(layer).flatten(-2) for layer in layers]), dim=-1)
    groups, heads = maps.shape[1:3]
    return torch.einsum('aghp,bghp->ab', maps, maps) / (groups * heads)


@torch.no_grad()
def diagonality_terms(layer: LayerTrace) -> tuple[Tensor, Tensor]:
    """The two terms of :func:`mmlavit.models.diagonality_loss` in its default form, apart.

    Returns:
        Scalars, averaged over windows and heads: how far entries of a row exceed the diagonal, and
        how far the map is from its transpose. Both are 0 at best.
    """
    asymmetry, excess = ops.diagonality(layer.logits, layer.windows, 'hinge')
    return excess, asymmetry


def identity_distance(deviation: Tensor) -> Tensor:
    """How far a transform is from the identity, in the Frobenius norm relative to the identity's.

    Args:
        deviation: ``Theta - I`` or ``Psi - I``, as :class:`mmlavit.models.LessAttention` holds
            them, of shape ``(N, N)``.

    Returns:
        A scalar; 0 for the identity.
    """
    return deviation.detach().norm() / len(deviation) ** 0.5
