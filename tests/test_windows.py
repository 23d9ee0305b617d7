"""Windows cut a map and put it back."""

import pytest
import torch

from mmlavit.models.layers import merge, partition, window_mask

CPU = torch.device('cpu')


@pytest.mark.parametrize('size', [(14, 14), (1, 1), (9, 20), (7, 3)])
@pytest.mark.parametrize('window', [1, 4, 7])
@pytest.mark.parametrize('heads', [1, 3])
def test_merge_undoes_partition(size, window, heads):
    x = torch.randn(2, *size, 6)
    windows = partition(x, window, heads)
    assert windows.shape[1:] == (heads, window**2, 6 // heads)
    assert torch.equal(merge(windows, window, x.shape), x)


def test_a_window_holds_the_neighbours_of_one_image():
    b, h, w, n = 2, 6, 10, 4
    x = torch.arange(b * h * w).view(b, h, w, 1).float()
    windows = partition(x, n).view(b, 2, 3, n, n)
    assert torch.equal(windows[1, 0, 1], x[1, :4, 4:8, 0])
    assert torch.equal(windows[0, 1, 2, :2, :2], x[0, 4:, 8:, 0])
    mask = window_mask((h, w), n, CPU).view(2, 3, n, n)
    assert mask.sum() == h * w
    assert mask[1, 2, :2, :2].all()


def test_a_head_is_a_run_of_channels():
    x = torch.randn(1, 2, 2, 6)
    assert torch.equal(partition(x, 2, 3)[0, 1], x[0, ..., 2:4].reshape(4, 2))


def test_no_mask_where_windows_cover_the_map():
    assert window_mask((14, 21), 7, CPU) is None


def test_the_mask_of_images_of_several_sizes():
    real = torch.zeros(2, 4, 4, dtype=torch.bool)
    real[0] = True
    real[1, :3, :1] = True
    mask = window_mask((4, 4), 2, CPU, real).view(2, 2, 2, 2, 2)
    assert mask[0].all()
    assert mask[1].sum() == 3
    assert mask[1, 0, 0].tolist() == [[True, False], [True, False]]
    assert mask[1, 1, 0].tolist() == [[True, False], [False, False]]
