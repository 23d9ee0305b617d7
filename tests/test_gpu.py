"""On a GPU the backbone gives what it gives on a CPU."""

import copy

import pytest
import torch
from small_models import make_backbone, outputs_and_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'),
]
sizes = pytest.mark.parametrize('size', [(2, 3, 224, 224), (3, 3, 90, 75)], ids=str)


@sizes
@pytest.mark.parametrize('with_cp', [False, True])
def test_float32(size: tuple[int, ...], with_cp: bool) -> None:
    """Maps and gradients, with whole and with cut windows."""
    on_cpu, images = make_backbone(with_cp=with_cp), torch.randn(size)
    on_gpu = copy.deepcopy(on_cpu).cuda()
    found = outputs_and_gradients(on_gpu, images.cuda())
    for got, wanted in zip(found, outputs_and_gradients(on_cpu, images), strict=True):
        assert (got.cpu() - wanted).norm() < 1e-3 * wanted.norm() + 1e-5


@sizes
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_mixed_precision(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    """Maps near float32, and finite gradients."""
    model, images = make_backbone().cuda(), torch.randn(size, device='cuda')
    expected = model(images)
    with torch.autocast('cuda', dtype):
        maps = model(images)
    for found, wanted in zip(maps, expected, strict=True):
        assert (found.float() - wanted).norm() < 0.05 * wanted.norm()
    sum(m.float().sin().sum() for m in maps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
