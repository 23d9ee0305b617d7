"""What runs in tiles on a CPU is the same function, in value and gradient."""

import pytest
import torch

from mmlavit.models import LaViT
from mmlavit.models.layers import ConvFFN, block, ffn, tiles

ARCH = {'channels': (8, 8, 16, 16), 'depths': (2, 3, 3, 2), 'va_layers': (1, 1, 2, 1),
        'head_width': 8}  # fmt: skip


@pytest.fixture(params=[1, 2**11, 2**14, 2**30], ids=['row', '2KiB', '16KiB', 'whole'])
def tile_bytes(request, monkeypatch):
    """From a tile a row to all images in one."""
    monkeypatch.setattr(tiles, 'TILE_BYTES', request.param)
    return request.param


def untiled(monkeypatch):
    """From here on the model runs as on any other device."""
    for module in (block, ffn, tiles):
        monkeypatch.setattr(module, 'is_streamed', lambda x: False)


def model(window=3, **options):
    torch.manual_seed(0)
    made = LaViT(ARCH, window_size=window, **options).double()
    for name, param in made.named_parameters():
        if name.endswith(('theta', 'psi')):
            torch.nn.init.normal_(param, std=0.1)
    return made


def gradients(module, x):
    module.zero_grad()
    x = x.clone().requires_grad_()
    outs = module(x)
    outs = outs if isinstance(outs, tuple) else (outs,)
    sum(out.sin().sum() for out in outs).backward()
    return [x.grad, *(p.grad for p in module.parameters())]


SIZES = [(1, 1), (32, 32), (50, 90), (97, 33)]


@pytest.mark.parametrize('size', SIZES)
def test_prediction(size, tile_bytes, monkeypatch):
    lavit, images = model().eval(), torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        tiled = lavit(images)
        untiled(monkeypatch)
        for got, expected in zip(tiled, lavit(images), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('size', SIZES[1:])
@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients(size, with_cp, tile_bytes, monkeypatch):
    lavit, images = model(with_cp=with_cp), torch.randn(2, 3, *size, dtype=torch.float64)
    tiled = gradients(lavit, images)
    untiled(monkeypatch)
    for got, expected in zip(tiled, gradients(lavit, images), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('height', [1, 2, 3, 7])
def test_feed_forward_at_every_height(height, tile_bytes, monkeypatch):
    """Tiles meet at rows that the convolution straddles."""
    layer = ConvFFN(4, 16).double()
    x = torch.randn(2, height, 5, 4, dtype=torch.float64)
    tiled, value = gradients(layer, x), layer(x)
    untiled(monkeypatch)
    torch.testing.assert_close(value, layer(x), rtol=1e-10, atol=1e-10)
    for got, expected in zip(tiled, gradients(layer, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_autocast(monkeypatch):
    lavit, images = model().float(), torch.randn(2, 3, 50, 90)
    with torch.autocast('cpu', torch.bfloat16):
        tiled = gradients(lavit, images)
        untiled(monkeypatch)
        plain = gradients(lavit, images)
    for got, expected in zip(tiled, plain, strict=True):
        assert got.dtype == expected.dtype == torch.float32
        error = (got - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 0.05


def test_a_model_in_training_without_gradients_still_drops_paths():
    """Tiles are for evaluation: they skip stochastic depth."""
    lavit, images = model(drop_path_rate=0.9), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        one, other = lavit(images)[-1], lavit(images)[-1]
    assert not torch.equal(one, other)
