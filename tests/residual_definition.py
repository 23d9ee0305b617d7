"""The attention residual as the paper defines it, on the whole map."""

import math

import torch

from mmlavit.models.layers import AttentionResidual, window_mask


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


def check_residual(size, windows):
    """Compare the layer with the definition, pair by pair."""
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
