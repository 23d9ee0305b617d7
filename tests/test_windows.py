"""Windows split a map and join it again."""

import pytest
import torch
from attention_definition import windows_of

from mmlavit.ops import Windows

SIZES = [(14, 14), (1, 1), (9, 20), (7, 3)]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('side', [1, 4, 7])
@pytest.mark.parametrize('heads', [1, 3])
def test_a_group_holds_the_tokens_of_one_window(size, side, heads):
    """Head by head a run of channels, row by row, zeros for padding; joined they are the map."""
    x, windows = torch.randn(2, *size, 6), Windows(side, 2, *size)
    groups, mask = windows.split(x, heads), windows.valid(x)
    assert groups.shape == (2 * windows.rows * windows.cols, heads, side**2, 6 // heads)
    assert (mask is None) == (size[0] % side == size[1] % side == 0)
    for number, (image, rows, cols, valid) in enumerate(windows_of(windows)):
        tokens = x[image, rows, cols].reshape(len(valid), heads, -1).transpose(0, 1)
        assert torch.equal(groups[number][:, valid], tokens)
        padded = [i for i in range(side**2) if i not in valid]
        assert not groups[number][:, padded].any()
        if mask is not None:
            assert mask[number, 0, :, 0].nonzero().flatten().tolist() == valid
    assert torch.equal(windows.join(groups), x)


def test_padding_gets_no_gradient_and_tokens_one_each():
    windows = Windows(3, 1, 4, 5)
    x = torch.randn(1, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: windows.join(windows.split(x, 2).sin()), (x,))


def test_windows_are_a_value():
    """They compare, they are dictionary keys, and they unpack as they are written."""
    windows = Windows(7, 2, 9, 20)
    assert windows == Windows(7, 2, 9, 20) != Windows(7, 2, 9, 21)
    assert (windows.rows, windows.cols) == (2, 3)
    assert {windows: 1}[7, 2, 9, 20] == 1
