"""All numbers about the attention of one model on one image."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmlavit.models import LaViT, LayerTrace, LessAttention

from .attention_measures import diagonality_terms, identity_distance, similarity_matrix

__all__ = ['AttentionReport', 'Place', 'measure_attention', 'shorten']

Place = tuple[int, int]  # stage and layer, from 1
DIGITS = 6


class AttentionReport(NamedTuple):
    """What the figures show and the JSON file holds."""

    kinds: dict[Place, str]  # 'VA' or 'LA'
    shapes: dict[Place, tuple[int, ...]]  # of the maps: (groups, heads, N, N)
    diagonality: dict[Place, float]
    symmetry: dict[Place, float]
    matrices: dict[int, np.ndarray]  # similarities, (layers, layers) by stage
    theta: dict[Place, np.ndarray]  # deviation from the identity, (N, N)
    psi: dict[Place, np.ndarray]
    theta_distance: dict[Place, float]
    psi_distance: dict[Place, float]

    @property
    def saturation(self) -> dict[Place, float]:
        """Similarity of each layer to the one before it in its stage."""
        return {
            (stage, i + 1): float(matrix[i, i - 1])
            for stage, matrix in self.matrices.items()
            for i in range(1, len(matrix))
        }

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain containers, without the transforms themselves."""
        rows = {
            'diagonality': self.diagonality,
            'symmetry': self.symmetry,
            'similarity_to_previous': self.saturation,
            'theta_distance': self.theta_distance,
            'psi_distance': self.psi_distance,
        }
        layers = []
        for place, kind in self.kinds.items():
            windows, heads, tokens, _ = self.shapes[place]
            layer: dict[str, Any] = {'stage': place[0], 'layer': place[1], 'kind': kind}
            layer |= {'windows': windows, 'heads': heads, 'tokens_per_window': tokens}
            layer |= {name: shorten(row[place]) for name, row in rows.items() if place in row}
            layers.append(layer)
        similarity = {str(stage): shorten(matrix) for stage, matrix in self.matrices.items()}
        return {'layers': layers, 'similarity_by_stage': similarity}


def measure_attention(backbone: LaViT, layers: Sequence[LayerTrace]) -> AttentionReport:
    """Measure the attention of a model on an image, and its transforms.

    Args:
        backbone: The model's backbone.
        layers: Its logits on the image, of all layers of the stages to look at.
    """
    places = [(layer.stage, layer.layer) for layer in layers]
    terms = {place: diagonality_terms(a) for place, a in zip(places, layers, strict=True)}
    less = {}
    for stage, layer in places:
        attention = backbone.get_submodule(f'stages.{stage - 1}.blocks.{layer - 1}.attn')
        if isinstance(attention, LessAttention):
            less[stage, layer] = attention
    return AttentionReport(
        kinds={place: a.kind for place, a in zip(places, layers, strict=True)},
        shapes={place: tuple(a.logits.shape) for place, a in zip(places, layers, strict=True)},
        diagonality={place: float(diagonality) for place, (diagonality, _) in terms.items()},
        symmetry={place: float(symmetry) for place, (_, symmetry) in terms.items()},
        matrices={
            stage: similarity_matrix([a for a in layers if a.stage == stage]).cpu().numpy()
            for stage in sorted({a.stage for a in layers})
        },
        theta={place: a.theta.detach().cpu().numpy() for place, a in less.items()},
        psi={place: a.psi.detach().cpu().numpy() for place, a in less.items()},
        theta_distance={place: float(identity_distance(a.theta)) for place, a in less.items()},
        psi_distance={place: float(identity_distance(a.psi)) for place, a in less.items()},
    )


def shorten(values: Any) -> Any:
    """Numbers as plain floats of 6 significant digits, in lists as deep as an array.

    Args:
        values: A number or an array.
    """
    if np.ndim(values):
        return [shorten(value) for value in values]
    return float(f'{float(values):.{DIGITS}g}')
