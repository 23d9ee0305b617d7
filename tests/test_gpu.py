"""On a GPU the backbone gives what it gives on a CPU."""

import copy

import pytest
import torch

from mmlavit.models import LaViT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'),
]
SIZES = [(2, 3, 224, 224), (3, 3, 90, 75)]


def model(**options) -> LaViT:
    torch.manual_seed(0)
    made = LaViT('nano', **options)
    for name, parameter in made.named_parameters():
        if name.endswith(('theta', 'psi')):
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def results(made: LaViT, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Maps and gradients, on the CPU."""
    maps = made(images)
    sum((m.float().sin() * torch.linspace(-1, 1, m.shape[1], device=m.device)[:, None, None]).mean()
        for m in maps).backward()  # fmt: skip
    found = {f'map {i}': m.detach() for i, m in enumerate(maps)}
    found.update((name, p.grad) for name, p in made.named_parameters())
    return {name: tensor.float().cpu() for name, tensor in found.items()}


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('with_cp', [False, True])
def test_float32(size: tuple[int, ...], with_cp: bool) -> None:
    """Maps and gradients, with whole and with cut windows."""
    on_cpu, images = model(with_cp=with_cp), torch.randn(size)
    on_gpu = copy.deepcopy(on_cpu).cuda()
    expected = results(on_cpu, images)
    for name, found in results(on_gpu, images.cuda()).items():
        assert (found - expected[name]).norm() < 1e-3 * expected[name].norm() + 1e-5, name


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_mixed_precision(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    """Maps near float32, and finite gradients."""
    made, images = model().cuda(), torch.randn(size, device='cuda')
    expected = made(images)
    with torch.autocast('cuda', dtype):
        maps = made(images)
    for found, wanted in zip(maps, expected, strict=True):
        assert (found.float() - wanted).norm() < 0.05 * wanted.norm()
    sum(m.float().sin().sum() for m in maps).backward()
    assert all(p.grad.isfinite().all() for p in made.parameters())
