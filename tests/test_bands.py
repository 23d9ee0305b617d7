"""Prediction on a CPU by bands of rows: the same numbers in pieces."""

import pytest
import torch
from small_models import SIZES, make_model

from mmlavit.models.layers import ConvFFN
from mmlavit.ops import bands

# from a band a row to all images in one
BYTES = pytest.mark.parametrize('band_bytes', [1, 2**13, 2**30])


@BYTES
@pytest.mark.parametrize('height', [1, 2, 7])
def test_feed_forward_in_bands(height, band_bytes, monkeypatch):
    """Bands meet at rows that the convolution straddles; with gradients there is one band."""
    monkeypatch.setattr(bands, 'BAND_BYTES', band_bytes)
    layer, calls = ConvFFN(4, 16).double(), []  # with biases, unlike a fresh backbone's
    layer.fc1.register_forward_hook(lambda module, args, out: calls.append(out.shape))
    x = torch.randn(3, height, 5, 4, dtype=torch.float64)
    expected = layer(x)
    assert calls == [(3, height, 5, 16)]
    with torch.no_grad():
        found = layer(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    pieces = {1: 3 * height, 2**30: 1}
    assert len(calls[1:]) == pieces.get(band_bytes, len(calls[1:]))
    row = 5 * 16 * 8  # bytes of a row of the widest map
    assert all(rows * row <= band_bytes + 3 * row or images == 1 for images, rows, *_ in calls[1:])


@BYTES
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_a_backbone_predicts_what_it_computes_in_training(size, band_bytes, monkeypatch):
    """Several images, at sizes that fill windows and at others; also in inference mode."""
    monkeypatch.setattr(bands, 'BAND_BYTES', band_bytes)
    model, images = make_model().double(), torch.randn(size, dtype=torch.float64)
    expected = model(images)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for got, wanted in zip(model(images), expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
