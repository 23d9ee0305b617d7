"""The attention residual as the paper defines it, on the whole map."""

import math
from itertools import product

import torch
from attention_definition import windows_of

from mmlavit.models import AttentionResidual
from mmlavit.ops import Windows


def whole_map(logits, windows):
    """``(groups, H, N, N) -> (H, h * w, h * w)`` of one image, 0 for pairs that never attended."""
    h, w = windows.height, windows.width
    full = logits.new_zeros(logits.shape[1], h * w, h * w)
    places = torch.arange(h * w).view(h, w)
    for group, window in zip(logits, windows_of(windows), strict=True):
        tokens = places[window.rows, window.cols].flatten()
        part = group[:, window.valid][:, :, window.valid]
        full[:, tokens[:, None], tokens] = part
    return full


def brute_force(layer, logits, windows, next_windows):
    """R(i, j) = sum_ab K(a, b) A(2i + a, 2j + b) on one image, then norm, 1x1 conv and LS.

    One tensor ``(H', n, n)`` a window of the next stage, of its tokens on the map.
    """
    h, w = windows.height, windows.width
    out_h, out_w = next_windows.height, next_windows.width
    full = whole_map(logits, windows)
    pairs = full.new_zeros(len(full), out_h * out_w, out_h * out_w)
    for i, j in product(range(out_h * out_w), repeat=2):
        for a, b in product(range(4), repeat=2):
            iy, ix = 2 * (i // out_w) + a // 2, 2 * (i % out_w) + a % 2
            jy, jx = 2 * (j // out_w) + b // 2, 2 * (j % out_w) + b % 2
            if iy < h and ix < w and jy < h and jx < w:
                pairs[:, i, j] += layer.kernel[:, a, b] * full[:, iy * w + ix, jy * w + jx]
    places, out = torch.arange(out_h * out_w).view(out_h, out_w), []
    for window in windows_of(next_windows):
        tokens = places[window.rows, window.cols].flatten()
        part = pairs[:, tokens][:, :, tokens]
        mean = part.mean((-2, -1), keepdim=True)
        std = (part.var((-2, -1), keepdim=True, unbiased=False) + 1e-5).sqrt()
        part = torch.einsum('oi,ijk->ojk', layer.proj.weight[:, :, 0, 0], (part - mean) / std)
        out.append(part * layer.layer_scale[:, None, None])
    return out


def residual_windows(size, sides, images=1):
    """Those of a map and of the next stage's."""
    windows = Windows(sides[0], images, *size)
    return windows, Windows(sides[1], images, *(math.ceil(side / 2) for side in size))


def check_residual(size, sides):
    """Compare the layer with the definition, pair by pair; padding before it holds noise."""
    layer = AttentionResidual(2, 3).double()
    torch.nn.init.normal_(layer.layer_scale)
    windows, next_windows = residual_windows(size, sides, images=2)
    count, n = windows.rows * windows.cols, sides[0] ** 2
    logits = torch.randn(2 * count, 2, n, n, dtype=torch.float64)
    got = layer(logits, windows, next_windows)
    expected = []
    for image in range(2):
        mine = logits[image * count : (image + 1) * count]
        expected += brute_force(layer, mine, *residual_windows(size, sides))
    for values, part, window in zip(expected, got, windows_of(next_windows), strict=True):
        torch.testing.assert_close(
            part[:, window.valid][:, :, window.valid], values, rtol=1e-8, atol=1e-8
        )
        padded = [i for i in range(sides[1] ** 2) if i not in window.valid]
        assert not part[:, padded].any() and not part[:, :, padded].any()
