"""The seam: which backend computes a formula, who says so, and why."""

import re
from collections.abc import Iterator

import pytest
import torch
from small_models import make_backbone

from mmlavit import ops
from mmlavit.models.layers import ConvFFN
from mmlavit.ops import backends

WINDOWS = ops.Windows(3, 1, 4, 5)
LOGITS, KERNEL = torch.randn(4, 2, 9, 9), torch.randn(2, 4, 4)
MAP, TRANSFORM = torch.randn(1, 4, 5, 32), torch.zeros(9, 9)
CALLS = {
    'add_norm': (MAP, MAP, torch.ones(32), torch.zeros(32), 1e-5),
    'vanilla_attention': (torch.randn(1, 4, 5, 96), None, WINDOWS, 2, True),
    'less_attention': (MAP, LOGITS, TRANSFORM, TRANSFORM, WINDOWS),
    'attention_residual': (LOGITS, KERNEL, WINDOWS, ops.Windows(3, 1, 2, 3)),
    'conv_gelu': (MAP, torch.randn(32, 1, 3, 3), None),
    'diagonality': (LOGITS, WINDOWS, 'hinge'),
}


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    """Leave the choice as every user finds it."""
    ops.use('auto')
    yield
    ops.use('auto')


class Kernels:
    """Kernels for one formula, which give its definition's result plus 1."""

    @staticmethod
    def why_not(asked_for: bool, operator: str, *args: object) -> str | None:
        return None if operator == 'conv_gelu' else 'it has no kernel'

    @staticmethod
    def run(operator: str, x: torch.Tensor, *args: object) -> torch.Tensor:
        with ops.use('definition'):
            return getattr(ops, operator)(x, *args) + 1


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend for these tests alone."""
    monkeypatch.setattr(backends, 'KERNELS', {'triton': Kernels})


@pytest.mark.parametrize('name', CALLS)
def test_on_a_cpu_auto_takes_the_definition_and_says_why(name: str) -> None:
    """And `use('triton')` stops with the same reason instead of computing something else."""
    choice = ops.explain(name, *CALLS[name])
    assert choice.backend == 'definition'
    assert re.search('cpu|no kernel', choice.reason)
    with (
        ops.use('triton'),
        pytest.raises(RuntimeError, match=f"{name}: asked for by use.'triton'.*(cpu|no kernel)"),
    ):
        getattr(ops, name)(*CALLS[name])
    getattr(ops, name)(*CALLS[name])


def test_a_backbone_stops_where_a_backend_that_was_asked_for_cannot_run() -> None:
    """The choice reaches all layers."""
    with ops.use('triton'), pytest.raises(RuntimeError, match="use\\('triton'\\)"):
        make_backbone()(torch.randn(1, 3, 32, 32))


def test_use_holds_from_now_on_or_within_a_block() -> None:
    """Blocks nest, and an error leaves what was asked for before."""

    def reason() -> str:
        return ops.explain('conv_gelu', *CALLS['conv_gelu']).reason

    auto = reason()
    ops.use('definition')
    assert reason() == "asked for by use('definition')"
    with pytest.raises(KeyError), ops.use('auto'):
        assert reason() == auto
        with ops.use('definition'):
            assert reason() != auto
        assert reason() == auto
        raise KeyError
    assert reason() == "asked for by use('definition')"
    ops.use('auto')
    assert reason() == auto


def test_an_unknown_backend_is_named() -> None:
    """And changes nothing."""
    ops.use('definition')
    with pytest.raises(ValueError, match="backend='cuda': expected 'auto', 'definition' or 'tri"):
        ops.use('cuda')  # type: ignore[arg-type]
    assert ops.explain('conv_gelu', MAP).backend == 'definition'


@pytest.mark.usefixtures('kernels')
def test_a_kernel_runs_where_it_fits() -> None:
    """In the layers too, and with arguments by name; `use('definition')` goes without it."""
    x, weight, _ = CALLS['conv_gelu']
    assert ops.explain('conv_gelu', x, weight, None).backend == 'triton'
    assert ops.explain('diagonality', *CALLS['diagonality']) == (
        'definition',
        'triton: it has no kernel',
    )
    found = ops.conv_gelu(x, weight=weight, bias=None)
    with ops.use('definition'):
        expected = ops.conv_gelu(x, weight, None)
    assert torch.equal(found, expected + 1)
    layer = ConvFFN(32, 8)
    with ops.use('definition'):
        hidden = layer.dwconv(layer.fc1(x))
    assert torch.equal(layer(x), layer.fc2(hidden + 1))
