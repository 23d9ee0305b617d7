"""The seam: which backend computes a formula, who says so, and why."""

from collections.abc import Iterator
from inspect import signature

import pytest
import torch
from torch.utils._pytree import tree_leaves

from mmlavit import ops

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


@pytest.mark.parametrize('name', CALLS)
def test_on_a_cpu_auto_takes_the_definition_and_says_why(name: str) -> None:
    """And `use('triton')` stops with the same reason, also where arguments have names."""
    choice = ops.explain(name, *CALLS[name])
    assert choice.backend == 'definition'
    assert 'cpu' in choice.reason
    formula = getattr(ops, name)
    named = signature(formula).bind(*CALLS[name]).arguments
    with (
        ops.use('triton'),
        pytest.raises(RuntimeError, match=f"{name}: asked for by use.'tri.*cpu"),
    ):
        formula(**named)
    for a, b in zip(tree_leaves(formula(**named)), tree_leaves(formula(*CALLS[name])), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


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
