"""The attention residual against its whole-map definition."""

import math

import pytest
import torch
from residual_definition import check_residual, masks, windows_of

from mmlavit.models.layers import AttentionResidual, partition, window_mask


@pytest.mark.parametrize(
    ('size', 'windows'),
    [
        ((14, 14), (7, 7)),  # the default at 224 in small: windows fit, cells straddle
        ((8, 8), (4, 4)),
        ((8, 12), (4, 2)),
        ((12, 12), (3, 6)),
        ((9, 7), (3, 5)),
        ((13, 10), (7, 7)),
        ((10, 11), (4, 3)),
        ((6, 10), (5, 4)),
        ((7, 3), (2, 3)),
        ((5, 5), (7, 2)),
        ((1, 6), (3, 3)),
        ((1, 1), (7, 7)),
    ],
)
def test_equals_the_whole_map_definition(size, windows):
    check_residual(size, windows)


def test_padding_of_the_previous_stage_is_silent():
    layer = AttentionResidual(2, 2, 4, 4)
    mask, out_mask = masks(layer, (6, 6), 1)
    logits = torch.randn(4, 2, 16, 16)
    pairs = mask[:, None, :, None] & mask[:, None, None, :]
    loud = torch.where(pairs, logits, 1e4)
    real = out_mask[:, None, :, None] & out_mask[:, None, None, :]
    quiet = layer(logits, (1, 6, 6), mask, out_mask) * real
    assert torch.equal(quiet, layer(loud, (1, 6, 6), mask, out_mask) * real)


@pytest.mark.parametrize(('size', 'windows'), [((6, 5), (3, 3)), ((4, 4), (2, 2))])
def test_gradients_are_exact(size, windows):
    """Against finite differences in float64, with straddling cells and padding."""
    layer = AttentionResidual(1, 2, *windows).double()
    count = math.ceil(size[0] / windows[0]) * math.ceil(size[1] / windows[0])
    logits = torch.randn(count, 1, windows[0] ** 2, windows[0] ** 2, dtype=torch.float64)
    mask, out_mask = masks(layer, size, 1)

    def residual(value, kernel, proj, scale):
        params = {'kernel': kernel, 'proj.weight': proj, 'layer_scale': scale}
        out = torch.func.functional_call(layer, params, (value, (1, *size), mask, out_mask))
        if out_mask is None:
            return out
        return out * (out_mask[:, None, :, None] & out_mask[:, None, None, :])

    inputs = [logits, layer.kernel, layer.proj.weight, layer.layer_scale]
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(residual, inputs, fast_mode=True)


def test_half_precision_logits_near_the_limit_stay_finite():
    layer = AttentionResidual(2, 2, 7, 7)
    with torch.autocast('cpu', torch.float16):
        out = layer(6e4 * torch.sign(torch.randn(4, 2, 49, 49)).half(), (1, 14, 14))
    assert out.isfinite().all()


def test_partition_agrees_with_the_index_arithmetic():
    """`partition` cuts windows in the order that the residual assumes."""
    h, w, n = 5, 7, 3
    number, place = windows_of(h, w, n)
    tokens = partition(torch.arange(1.0, h * w + 1).view(1, h, w, 1), n).flatten(1)
    assert torch.equal(tokens[number, place], torch.arange(1.0, h * w + 1))
    assert torch.equal(tokens != 0, window_mask((h, w), n, torch.device('cpu')))
