"""The layout that leaves the backbone: channels first, contiguous, whatever way it is made."""

import pytest
import torch

from mmlavit.models.layers.channels_first import CHUNK, channels_first


@pytest.mark.parametrize('size', [(1, 1), (32, 32), (31, 33), (33, 32), (CHUNK + 1, 2)])
@pytest.mark.parametrize('strided', [False, True])
def test_value_and_gradient(size, strided):
    """Below, at and above a chunk, and several."""
    x = torch.randn(2, *size, 5, requires_grad=True)
    tokens = x.transpose(1, 2) if strided else x
    found = channels_first(tokens)
    assert found.is_contiguous()
    expected = tokens.permute(0, 3, 1, 2)
    assert torch.equal(found, expected)
    grad = torch.randn_like(found)
    (got,) = torch.autograd.grad(found, x, grad)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    assert torch.equal(got, wanted)


def test_second_derivatives():
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: channels_first(x.sin()), (x,))
