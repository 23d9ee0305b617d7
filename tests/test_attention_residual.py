"""The attention residual against its whole-map definition."""

import math

import pytest
import torch

from mmlavit.models.layers import AttentionResidual, partition, window_mask


def windows_of(h, w, window):
    """For each token of the map: its window and its place in it, both ``(h * w)``."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
    number = y // window * math.ceil(w / window) + x // window
    place = y % window * window + x % window
    return number.flatten(), place.flatten()


def whole_map(logits, h, w, window):
    """``(windows, H, N, N) -> (H, h * w, h * w)``, 0 for pairs that never attended."""
    number, place = windows_of(h, w, window)
    full = logits.new_zeros(logits.shape[1], h * w, h * w)
    for i in range(h * w):
        for j in range(h * w):
            if number[i] == number[j]:
                full[:, i, j] = logits[number[i], :, place[i], place[j]]
    return full


def masks(layer, size, images):
    """Which tokens are real before and behind the layer, for images of one size."""
    out_size = (math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    cpu = torch.device('cpu')
    found = (window_mask(size, layer.in_window, cpu), window_mask(out_size, layer.out_window, cpu))
    return [None if mask is None else mask.repeat(images, 1) for mask in found]


def brute_force(layer, logits, size):
    """R(i, j) = sum_ab K(a, b) A(2i + a, 2j + b) on one image, then norm, 1x1 conv and LS."""
    (h, w), n = size, layer.out_window
    out_h, out_w = math.ceil(h / 2), math.ceil(w / 2)
    full = whole_map(logits, h, w, layer.in_window)
    scores = full.new_zeros(len(full), out_h * out_w, out_h * out_w)
    taps = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for i in range(out_h * out_w):
        for j in range(out_h * out_w):
            for a in taps:
                for b in taps:
                    iy, ix = 2 * (i // out_w) + a[0], 2 * (i % out_w) + a[1]
                    jy, jx = 2 * (j // out_w) + b[0], 2 * (j % out_w) + b[1]
                    if iy < h and ix < w and jy < h and jx < w:
                        tap = layer.kernel[(slice(None), *a, *b)]
                        scores[:, i, j] += tap * full[:, iy * w + ix, jy * w + jx]
    number, place = windows_of(out_h, out_w, n)
    out = {}
    for window in range(int(number.max()) + 1):
        tokens = (number == window).nonzero().flatten()
        part = scores[:, tokens][:, :, tokens]
        mean = part.mean((-2, -1), keepdim=True)
        std = (part.var((-2, -1), keepdim=True, unbiased=False) + 1e-5).sqrt()
        part = torch.einsum('oi,ijk->ojk', layer.proj.weight[:, :, 0, 0], (part - mean) / std)
        out[window] = place[tokens], part * layer.layer_scale[:, None, None]
    return out


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
    in_window, out_window = windows
    layer = AttentionResidual(2, 3, in_window, out_window)
    torch.nn.init.normal_(layer.layer_scale)
    count = math.ceil(size[0] / in_window) * math.ceil(size[1] / in_window)
    layer.double()
    # padding holds noise
    logits = torch.randn(2 * count, 2, in_window**2, in_window**2, dtype=torch.float64)
    mask, out_mask = masks(layer, size, 2)
    got = layer(logits, (2, *size), mask, out_mask)
    per_image = len(got) // 2
    for image in range(2):
        mine = logits[image * count : (image + 1) * count]
        expected = brute_force(layer, mine, size)
        assert len(expected) == per_image
        for window, (place, values) in expected.items():
            part = got[image * per_image + window][:, place][:, :, place]
            torch.testing.assert_close(part, values, rtol=1e-8, atol=1e-8)


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
