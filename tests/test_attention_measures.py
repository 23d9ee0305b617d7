"""What is measured on attention maps."""

import pytest
import torch
from small_models import make_backbone, make_layer

from mmlavit.models import LessAttention, diagonality_loss
from mmlavit.models.layers import PAD_VALUE
from mmlavit.visualization.attention_maps import collect_attention
from mmlavit.visualization.attention_measures import (
    diagonality_terms,
    identity_distance,
    similarity,
    similarity_matrix,
)


def test_padding_of_a_batch_does_not_count():
    """An image gives the same numbers alone and padded to a larger batch."""
    backbone = make_backbone()
    image = torch.randn(1, 3, 160, 192)
    padded = torch.full((1, 3, 320, 544), PAD_VALUE)
    padded[..., :160, :192] = image
    alone, batched = (collect_attention(backbone, x) for x in (image, padded))
    for first, second in zip(alone, batched, strict=True):
        for a, b in zip(diagonality_terms(first), diagonality_terms(second), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        similarity_matrix(alone[1:4]), similarity_matrix(batched[1:4]), atol=1e-5, rtol=1e-4
    )


def test_similarity_is_the_mean_cosine_of_real_pairs():
    """By hand; 1 for identical maps; what stands at padded tokens does not matter."""
    maps = torch.randn(2, 3, 2, 9, 9).softmax(-1)
    real = [9, 6, 0]
    mask = torch.arange(9)[None] < torch.tensor(real)[:, None]
    cosines = []
    for g, n in enumerate(real[:2]):
        for h in range(2):
            a, b = (m[g, h, :n, :n].flatten() for m in maps)
            cosines.append(a @ b / (a.norm() * b.norm()))
    first, second = (make_layer(m, mask) for m in maps)
    torch.testing.assert_close(similarity(first, second), torch.stack(cosines).mean())
    torch.testing.assert_close(similarity(first, first), torch.tensor(1.0))
    loud = maps[0].masked_fill(~(mask[:, None, :, None] & mask[:, None, None, :]), 5.0)
    torch.testing.assert_close(similarity(make_layer(loud, mask), first), torch.tensor(1.0))
    matrix = similarity_matrix([first, second])
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix[0, 1], similarity(first, second))
    with pytest.raises(ValueError, match=r'\(3, 2, 9, 9\) \(layer 2.1\) and \(1, 2, 9, 9\)'):
        similarity(first, make_layer(maps[0, :1]))


@pytest.mark.parametrize('real', [(9, 9), (9, 5)])
def test_terms_are_those_of_the_loss(real):
    """They sum to the loss; each is 0 where its property holds, and only there."""
    logits = 3 * torch.randn(2, 2, 9, 9)
    mask = torch.arange(9)[None] < torch.tensor(real)[:, None]
    attention = logits.masked_fill(~mask[:, None, None], -1e9).softmax(-1)
    given = None if min(real) == 9 else mask
    diagonality, symmetry = diagonality_terms(make_layer(attention, given))
    torch.testing.assert_close(diagonality + symmetry, diagonality_loss(logits, given))
    by_hand = [
        (p := attention[g, h, :n, :n]).sub(p.T).abs().sum() / (2 * n)
        for g, n in enumerate(real)
        for h in range(2)
    ]
    torch.testing.assert_close(symmetry, torch.stack(by_hand).mean())
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    peaked = (-torch.minimum(distance, 9 - distance).float()).softmax(-1).expand(1, 1, 9, 9)
    assert max(diagonality_terms(make_layer(peaked))) < 1e-6
    shifted = diagonality_terms(make_layer(peaked.flip(-1)))  # symmetric, peaks elsewhere
    assert shifted[1] < 1e-6 < 0.01 < shifted[0]


def test_distance_from_the_identity():
    """A new layer is at 0; twice the identity is at 1, whatever the window."""
    for window in (3, 7):
        new = LessAttention(16, 1, window)
        assert identity_distance(new.theta) == identity_distance(new.psi) == 0
        new.psi.data += torch.eye(window**2)
        torch.testing.assert_close(identity_distance(new.psi), torch.tensor(1.0))
