"""torch.compile gives what the model gives."""

from collections.abc import Iterator

import pytest
import torch
from small_models import ARCH, randomize
from torch._dynamo.utils import counters

from mmlavit.models import PAD_VALUE, LaViT

# windows and patches that are full, and some that are not
SIZES = [(2, 3, 56, 112), (3, 3, 50, 75)]


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    """Compile anew in each test, and count from zero."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def outputs_and_gradients(model: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    outs = model(images)
    # a plain sum of normalized maps would have no gradient
    loss = sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).mean() for out in outs)
    loss.backward()
    return [*outs, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.slow
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_training_step_is_the_same(size: tuple[int, ...]) -> None:
    """Outputs and every gradient, from one graph without a break."""
    model = randomize(LaViT(ARCH, out_indices=(0, 1))).train()
    images = torch.randn(size)
    compiled = torch.compile(model, backend='aot_eager', dynamic=False, fullgraph=True)
    found = outputs_and_gradients(compiled, images)
    for a, b in zip(found, outputs_and_gradients(model, images), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_padding_of_a_batch_is_left_out() -> None:
    """As in the model that is not compiled, whose features are those of the image alone."""
    model = randomize(LaViT(ARCH, out_indices=(0, 1))).train()
    images = torch.full((2, 3, 64, 96), PAD_VALUE)
    images[0, :, :50, :75], images[1, :, :64, :40] = torch.randn(3, 50, 75), torch.randn(3, 64, 40)
    compiled = torch.compile(model, backend='aot_eager', dynamic=False, fullgraph=True)
    found = outputs_and_gradients(compiled, images)
    for a, b in zip(found, outputs_and_gradients(model, images), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_changing_sizes_are_compiled_once_each() -> None:
    """A size that comes back finds its graph."""
    model = randomize(LaViT(ARCH, out_indices=(0,)))
    compiled = torch.compile(model, backend='aot_eager', dynamic=False, fullgraph=True)
    with torch.no_grad():
        for size in [*SIZES, *SIZES]:
            images = torch.randn(size)
            for a, b in zip(compiled(images), model(images), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert counters['stats']['unique_graphs'] == len(SIZES)


@pytest.mark.slow
def test_generated_code_predicts_the_same() -> None:
    """The default backend, which writes C++ on a CPU: a stage with both kinds of attention."""
    model = randomize(LaViT(dict(ARCH, depths=(2, 1, 1, 1)), out_indices=(0,)))
    images = torch.randn(SIZES[1])
    compiled = torch.compile(model, dynamic=False, fullgraph=True)
    with torch.no_grad():
        for a, b in zip(compiled(images), model(images), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
