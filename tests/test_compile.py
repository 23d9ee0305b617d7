"""torch.compile gives what the model gives."""

from collections.abc import Iterator

import pytest
import torch
from small_models import SIZES, make_model, outputs_and_gradients
from torch._dynamo.utils import counters

from mmlavit import ops
from mmlavit.ops import Windows

# more than one image, and than one window in each direction: torch takes one for a case of its own
MORE_SIZES = [(2, 3, 40, 52), (3, 3, 64, 96), (4, 3, 43, 100)]


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    """Compile anew in each test, and count from zero."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compare(compiled: torch.nn.Module, model: torch.nn.Module, images: torch.Tensor) -> None:
    """Maps, and where they are recorded the gradients of all parameters."""
    training = torch.is_grad_enabled()
    found, wanted = (
        outputs_and_gradients(m, images) if training else m(images) for m in (compiled, model)
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_training_step_is_the_same() -> None:
    """Outputs and every gradient, from one graph without a break."""
    model = make_model(out_indices=(0, 1)).train()
    compiled = torch.compile(model, backend='aot_eager', dynamic=False, fullgraph=True)
    compare(compiled, model, torch.randn(SIZES[1]))


@pytest.mark.slow
def test_one_graph_serves_all_sizes() -> None:
    """Whether windows and patches fill the map or not."""
    # even windows are one class in a residual, whose graph is built in half the time
    model = make_model(window_size=2, out_indices=(0, 1))
    compiled = torch.compile(model, backend='eager', dynamic=True, fullgraph=True)
    for size in MORE_SIZES:
        compare(compiled, model, torch.randn(size))
    assert counters['stats']['unique_graphs'] == 1


def test_graphs_are_kept_by_size_and_by_backend() -> None:
    """A size that comes back finds its graph; a backend that is asked for later is not ignored."""
    model = make_model(out_indices=(0,))
    compiled = torch.compile(model, backend='eager', dynamic=False, fullgraph=True)
    with torch.no_grad():
        for size in [*SIZES, *SIZES]:
            compare(compiled, model, torch.randn(size))
        assert counters['stats']['unique_graphs'] == len(SIZES)
        with ops.use('triton'), pytest.raises(Exception, match="asked for by use\\('triton'\\)"):
            compiled(torch.randn(size))
        compare(compiled, model, torch.randn(size))


@pytest.mark.slow
def test_generated_code_predicts_the_same() -> None:
    """The default backend, which writes C++ on a CPU: a residual, and both kinds of attention.

    Code that writes beyond its buffers does not fail here, but ends the process.
    """
    # even windows are one class in a residual; they reach over the border of both maps
    stage = make_model(window_size=6, out_indices=(0, 1)).stages[1]
    windows = Windows(6, batch=1, height=16, width=16)
    x, logits = torch.randn(1, 16, 16, 16), torch.randn(9, 1, 36, 36)
    compiled = torch.compile(stage, dynamic=False, fullgraph=True)
    with torch.no_grad():
        (a, *_), (b, *_) = compiled(x, logits, windows), stage(x, logits, windows)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
