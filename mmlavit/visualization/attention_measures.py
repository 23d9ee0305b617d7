"""What is measured on attention maps (docs/attention.md)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlavit.models import diagonality_loss

from .attention_maps import LayerAttention

__all__ = ['diagonality_terms', 'identity_distance', 'similarity', 'similarity_matrix']


def similarity(first: LayerAttention, second: LayerAttention) -> Tensor:
    """Mean cosine similarity of two layers' maps: the paper's attention saturation.

    The map of one window and one head is one vector; padded queries and keys are left out. The
    cosines are averaged over windows and heads, head ``i`` with head ``i``.

    Args:
        first: A layer.
        second: A layer of the same stage and the same images.

    Returns:
        A scalar in [0, 1]; 1 for identical maps.

    Raises:
        ValueError: If the maps differ in shape.
    """
    if first.attention.shape != second.attention.shape:
        raise ValueError(
            f'maps of shape {tuple(first.attention.shape)} (layer {first.stage}.{first.layer}) and '
            f'{tuple(second.attention.shape)} (layer {second.stage}.{second.layer}) cannot be '
            'compared'
        )
    maps = [_real_pairs(layer).flatten(-2) for layer in (first, second)]
    return F.cosine_similarity(maps[0], maps[1], dim=-1).mean()


def similarity_matrix(layers: list[LayerAttention]) -> Tensor:
    """Similarity of all pairs of layers of one stage.

    Args:
        layers: The stage's layers.

    Returns:
        Symmetric matrix of shape ``(len(layers), len(layers))``, on the CPU.
    """
    matrix = torch.ones(len(layers), len(layers))
    for i, first in enumerate(layers):
        for j, second in enumerate(layers[:i]):
            matrix[i, j] = matrix[j, i] = similarity(first, second)
    return matrix


def diagonality_terms(layer: LayerAttention) -> tuple[Tensor, Tensor]:
    """The two terms of :func:`mmlavit.models.diagonality_loss` in its default form, apart.

    Args:
        layer: A layer, vanilla or less attention.

    Returns:
        Scalars, averaged over windows with a real token and over heads: how far entries of a row
        exceed the diagonal, and how far the map is from its transpose. Both are 0 at best.
    """
    attention = _real_pairs(layer)
    count: Tensor | int = attention.shape[-1]
    mask = None
    if layer.mask is not None:
        mask = layer.mask[layer.mask.any(-1)]
        count = mask.sum(-1, dtype=attention.dtype)[:, None]  # (groups, 1)
    asymmetry = ((attention - attention.mT).abs().sum((-2, -1)) / (2 * count)).mean()
    # the loss takes logits
    both = diagonality_loss(attention.log(), mask)
    return (both - asymmetry).clamp(min=0), asymmetry


def identity_distance(deviation: Tensor) -> Tensor:
    """How far a transform is from the identity, in the Frobenius norm relative to the identity's.

    Args:
        deviation: ``Theta - I`` or ``Psi - I``, as :class:`mmlavit.models.LessAttention` holds
            them, of shape ``(N, N)``.

    Returns:
        A scalar; 0 for the identity.
    """
    return deviation.detach().norm() / len(deviation) ** 0.5


def _real_pairs(layer: LayerAttention) -> Tensor:
    """The maps of windows that hold a real token, 0 where query or key is padding."""
    if layer.mask is None:
        return layer.attention
    some = layer.mask.any(-1)
    mask = layer.mask[some][:, None]  # (groups, 1, N)
    return layer.attention[some].masked_fill(~(mask[..., :, None] & mask[..., None, :]), 0)
