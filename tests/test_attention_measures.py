"""What is measured on attention maps."""

import pytest
import torch
from attention_definition import valid_pairs
from small_models import make_layer

from mmlavit.models import LessAttention, diagonality_loss
from mmlavit.ops import Windows
from mmlavit.visualization.attention_measures import (
    diagonality_terms,
    identity_distance,
    similarity_matrix,
)

WINDOWS = [Windows(3, 2, 3, 6), Windows(3, 2, 4, 5)]
windows = pytest.mark.parametrize('windows', WINDOWS, ids=['whole windows', 'borders'])


def logits_of(windows):
    return 3 * torch.randn(2 * windows.rows * windows.cols, 2, 9, 9)


@windows
def test_similarity_is_the_mean_cosine_of_valid_pairs(windows):
    """By hand; 1 for identical maps."""
    first, second = logits_of(windows), logits_of(windows)
    cosines = []
    for pairs in zip(*(valid_pairs(m, windows) for m in (first, second)), strict=True):
        a, b = (p.softmax(-1).flatten(1) for p in pairs)
        cosines.append(torch.cosine_similarity(a, b))
    mean = torch.cat(cosines).mean().item()
    matrix = similarity_matrix([make_layer(m, windows) for m in (first, second, first)])
    expected = torch.tensor([[1, mean, 1], [mean, 1, mean], [1, mean, 1]])
    torch.testing.assert_close(matrix, expected)


def test_layers_of_different_shapes_are_not_compared():
    first, second = (make_layer(logits_of(w), w) for w in WINDOWS)
    with pytest.raises(ValueError, match=r'\(4, 2, 9, 9\), \(8, 2, 9, 9\)'):
        similarity_matrix([first, second])


@windows
def test_terms_are_those_of_the_loss(windows):
    """They sum to the loss, and symmetry is what it says."""
    logits = logits_of(windows)
    diagonality, symmetry = diagonality_terms(make_layer(logits, windows))
    torch.testing.assert_close(diagonality + symmetry, diagonality_loss(logits, windows))
    by_hand = [
        (p := head.softmax(-1)).sub(p.T).abs().sum() / (2 * len(p))
        for pairs in valid_pairs(logits, windows)
        for head in pairs
    ]
    torch.testing.assert_close(symmetry, torch.stack(by_hand).mean())


def test_distance_from_the_identity():
    """A new layer is at 0; twice the identity is at 1, whatever the window."""
    for window in (3, 7):
        new = LessAttention(16, window)
        assert identity_distance(new.theta) == identity_distance(new.psi) == 0
        new.psi.data += torch.eye(window**2)
        torch.testing.assert_close(identity_distance(new.psi), torch.tensor(1.0))
