"""Windows that fit the map: the same tokens and pairs as padded windows, without the padding."""

import pytest
import torch

from mmlavit.models.layers import partition, window_mask
from mmlavit.models.layers.regions import cut_map, cut_pairs, join_map, join_pairs, regions

SIZES = [(1, 1), (6, 6), (7, 3), (2, 10), (5, 7)]
WINDOW, HEADS = 3, 2


def tokens_of_whole_windows(x):
    """``(groups, heads, N, d)``, and ``(groups, N)``, true where a token is real."""
    batch, h, w, _ = x.shape
    mask = window_mask((h, w), WINDOW, x.device)
    if mask is None:
        mask = torch.ones(-(-h // WINDOW) * -(-w // WINDOW), WINDOW**2, dtype=torch.bool)
    return partition(x, WINDOW, HEADS), mask.repeat(batch, 1)


@pytest.mark.parametrize('size', SIZES)
def test_regions_hold_each_token_once(size):
    count = torch.zeros(size)
    for rows, cols, (a, b) in regions(size, WINDOW):
        assert (rows.stop - rows.start) % a == 0 and (cols.stop - cols.start) % b == 0
        count[rows, cols] += 1
    assert (count == 1).all()


@pytest.mark.parametrize('size', SIZES)
def test_windows_are_the_real_tokens_of_padded_windows(size):
    """Region by region, the windows that have as many real tokens, in their order."""
    x = torch.randn(2, *size, 3 * HEADS * 4)
    fitted = regions(size, WINDOW)
    cut = cut_map(x, fitted, HEADS, parts=3)
    for part, whole in enumerate(x.chunk(3, -1)):
        windows, mask = tokens_of_whole_windows(whole)
        rows, cols = (m.view(-1, WINDOW, WINDOW).any(d).sum(-1) for m, d in ((mask, 2), (mask, 1)))
        for tokens, (_, _, (a, b)) in zip(cut, fitted, strict=True):
            mine = (rows == a) & (cols == b)
            expected = [w[:, m] for w, m in zip(windows[mine], mask[mine], strict=True)]
            assert torch.equal(tokens[part], torch.stack(expected))
        joined = join_map([tokens[part] for tokens in cut], fitted, whole.shape)
        assert torch.equal(joined, whole)


@pytest.mark.parametrize('size', SIZES)
def test_pairs_are_the_real_pairs_of_padded_windows(size):
    windows, mask = tokens_of_whole_windows(torch.randn(2, *size, HEADS))
    logits = torch.randn(*windows.shape[:3], WINDOW**2)
    cut = cut_pairs(logits, (2, *size), WINDOW)
    assert [len(p[0, 0]) for p in cut] == [a * b for _, _, (a, b) in regions(size, WINDOW)]
    real = (mask[:, :, None] & mask[:, None, :])[:, None]
    # what is cut and joined is what was there, silent outside the map
    assert torch.equal(join_pairs(cut, (2, *size), WINDOW), logits * real)
    rows, cols = (m.view(-1, WINDOW, WINDOW).any(d).sum(-1) for m, d in ((mask, 2), (mask, 1)))
    for scores, (_, _, (a, b)) in zip(cut, regions(size, WINDOW), strict=True):
        mine = (rows == a) & (cols == b)
        expected = [p[:, m][:, :, m] for p, m in zip(logits[mine], mask[mine], strict=True)]
        assert torch.equal(scores, torch.stack(expected))


def test_gradients_of_any_order():
    """Of maps and of pairs, there and back."""
    size = (2, 4, 5)
    x = torch.randn(*size, 2 * HEADS, dtype=torch.float64, requires_grad=True)
    fitted = regions(size[1:], WINDOW)

    def through_map(x):
        cut = cut_map(x, fitted, HEADS, parts=2)
        return join_map([(a * b).sin() for a, b in cut], fitted, (*size, HEADS))

    def through_pairs(logits):
        return join_pairs([p.sin() for p in cut_pairs(logits, size, WINDOW)], size, WINDOW)

    logits = torch.randn(8, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    for function, argument in ((through_map, x), (through_pairs, logits)):
        assert torch.autograd.gradcheck(function, (argument,))
        assert torch.autograd.gradgradcheck(function, (argument,))
