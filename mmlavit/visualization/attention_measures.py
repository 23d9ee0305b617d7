"""What is measured on attention maps (docs/attention.md)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmlavit import ops
from mmlavit.models import LaViT, LayerTrace, LessAttention

from .attention_maps import attention_of

__all__ = [
    'AttentionReport',
    'diagonality_terms',
    'entropy',
    'identity_distance',
    'measure_attention',
    'similarity_matrix',
]


def similarity_matrix(layers: Sequence[LayerTrace]) -> Tensor:
    """Mean cosine similarity of the maps of layers: the paper's attention saturation.

    The map of one window and one head is one vector; padded queries and keys are left out. The
    cosines are averaged over windows and heads, head ``i`` with head ``i``.

    Args:
        layers: Of one stage and the same images.

    Returns:
        Symmetric matrix of shape ``(len(layers), len(layers))``; 1 for identical maps.
    """
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


@torch.no_grad()
def entropy(layer: LayerTrace) -> Tensor:
    """How evenly tokens attend: the entropy of each row over the most that it can have.

    Returns:
        A scalar from 0, where each token attends to one, to 1, where it attends to all alike. It is
        averaged over tokens, windows and heads; a window of one valid token does not count, and a
        map that has no other gives 1.
    """
    attention = attention_of(layer)
    count = attention.sum((-2, -1)).round()  # valid tokens, (groups, heads)
    found = (torch.special.entr(attention).sum((-2, -1)) / count / count.log())[count > 1]
    return found.mean() if len(found) else attention.new_ones(())


def identity_distance(deviation: Tensor) -> Tensor:
    """How far a transform is from the identity, in the Frobenius norm relative to the identity's.

    Args:
        deviation: ``Theta - I`` or ``Psi - I``, as :class:`mmlavit.models.LessAttention` holds
            them, of shape ``(N, N)``.

    Returns:
        A scalar; 0 for the identity.
    """
    return deviation.detach().norm() / len(deviation) ** 0.5


class AttentionReport(NamedTuple):
    """All numbers about the attention of one model on one image."""

    layers: list[dict[str, Any]]  # place, kind, size and measures of each layer
    similarity: dict[int, np.ndarray]  # (layers, layers), by stage
    # Theta - I and Psi - I, (N, N), by stage and layer
    transforms: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]


def measure_attention(backbone: LaViT, layers: Sequence[LayerTrace]) -> AttentionReport:
    """Measure the attention of a model on an image, and its transforms.

    Args:
        backbone: The model's backbone.
        layers: Its logits on the image, of all layers of the stages to look at.
    """
    similarity = {
        stage: similarity_matrix([a for a in layers if a.stage == stage]).cpu().numpy()
        for stage in dict.fromkeys(layer.stage for layer in layers)
    }
    report = AttentionReport([], similarity, {})
    for layer in layers:
        windows, heads, tokens, _ = layer.logits.shape
        diagonality, symmetry = diagonality_terms(layer)
        row = {
            'stage': layer.stage,
            'layer': layer.layer,
            'kind': layer.kind,
            'windows': windows,
            'heads': heads,
            'tokens_per_window': tokens,
            'diagonality': float(diagonality),
            'symmetry': float(symmetry),
            'entropy': float(entropy(layer)),
        }
        if layer.layer > 1:
            matrix = similarity[layer.stage]
            row['similarity_to_previous'] = float(matrix[layer.layer - 1, layer.layer - 2])
        attention = backbone.get_submodule(
            f'stages.{layer.stage - 1}.blocks.{layer.layer - 1}.attn'
        )
        if isinstance(attention, LessAttention):
            theta, psi = attention.theta.detach().cpu(), attention.psi.detach().cpu()
            row['theta_distance'] = float(identity_distance(theta))
            row['psi_distance'] = float(identity_distance(psi))
            report.transforms[layer.stage, layer.layer] = (theta.numpy(), psi.numpy())
        report.layers.append(row)
    return report
