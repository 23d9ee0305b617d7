"""The attention residual against its whole-map definition."""

import pytest
import torch
from residual_definition import check_residual, residual_windows

from mmlavit.models import AttentionResidual


@pytest.mark.parametrize(
    ('size', 'sides'),
    [
        ((14, 14), (7, 7)),  # the default at 224 in small: windows fit, cells straddle
        ((8, 8), (4, 4)),
        ((8, 12), (4, 2)),
        ((12, 12), (3, 6)),
        ((9, 7), (3, 5)),
        ((10, 11), (4, 3)),
        ((6, 10), (5, 4)),
        ((7, 3), (2, 3)),
        ((5, 5), (7, 2)),
        ((1, 6), (3, 3)),
        ((1, 1), (7, 7)),
    ],
)
def test_equals_the_whole_map_definition(size, sides):
    check_residual(size, sides)


@pytest.mark.parametrize(('size', 'sides'), [((6, 5), (3, 3)), ((4, 4), (2, 2))])
def test_gradients_are_exact(size, sides):
    """Against finite differences in float64, with straddling cells and padding."""
    layer = AttentionResidual(1, 2).double()
    windows = residual_windows(size, sides)
    count, n = windows[0].rows * windows[0].cols, sides[0] ** 2
    logits = torch.randn(count, 1, n, n, dtype=torch.float64)

    def residual(value, *parameters):
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(layer, named, (value, *windows))

    inputs = [t.detach().clone().requires_grad_() for t in (logits, *layer.parameters())]
    assert torch.autograd.gradcheck(residual, inputs, fast_mode=True)


def test_half_precision_logits_near_the_limit_stay_finite():
    windows = residual_windows((14, 14), (7, 7))
    with torch.autocast('cpu', torch.float16):
        logits = 6e4 * torch.sign(torch.randn(4, 2, 49, 49)).half()
        out = AttentionResidual(2, 2)(logits, *windows)
    assert out.isfinite().all()
