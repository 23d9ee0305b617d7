"""On a GPU the backbone gives what it gives on a CPU."""

import copy

import pytest
import torch

from mmlavit.models import PAD_VALUE, LaViT

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
def test_mixed_precision_with_padding(dtype: torch.dtype) -> None:
    """Near float32, finite, and an image in a padded batch is what it is alone."""
    made = model().cuda()
    batch = torch.full((2, 3, 128, 160), PAD_VALUE, device='cuda')
    batch[0] = torch.randn(3, 128, 160)
    batch[1, :, :96, :64] = torch.randn(3, 96, 64)
    expected = made(batch)
    with torch.autocast('cuda', dtype):
        maps = made(batch)
        alone = made(batch[1:, :, :96, :64])
    for found, wanted, single in zip(maps, expected, alone, strict=True):
        h, w = single.shape[2:]
        assert (found[0].float() - wanted[0]).norm() < 0.05 * wanted[0].norm()
        assert (found[1, :, :h, :w].float() - single[0]).norm() < 0.05 * single[0].norm()
