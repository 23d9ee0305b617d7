"""Windows cut a map and put it back."""

import pytest
import torch

from mmlavit.models.layers import merge, partition, real_tokens


@pytest.mark.parametrize('size', [(14, 14), (1, 1), (9, 20), (7, 3)])
@pytest.mark.parametrize('window', [1, 4, 7])
def test_merge_undoes_partition(size, window):
    x = torch.randn(2, *size, 3)
    assert torch.equal(merge(partition(x, window), window, size), x)


def test_a_window_holds_the_neighbours_of_one_image():
    b, h, w, n = 2, 6, 10, 4
    x = torch.arange(b * h * w).view(b, h, w, 1).float()
    windows = partition(x, n).view(b, 2, 3, n, n)
    assert torch.equal(windows[1, 0, 1], x[1, :4, 4:8, 0])
    assert torch.equal(windows[0, 1, 2, :2, :2], x[0, 4:, 8:, 0])
    mask = real_tokens((h, w), n, x.device).view(2, 3, n, n)
    assert mask.sum() == h * w
    assert mask[1, 2, :2, :2].all()


def test_no_mask_where_windows_cover_the_map():
    assert real_tokens((14, 21), 7, torch.device('cpu')) is None
