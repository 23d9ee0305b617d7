"""Which backend computes a formula: its definition in plain PyTorch, or a kernel."""

import logging
from collections.abc import Callable
from functools import cache, wraps
from inspect import signature
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

import torch
from mmengine.logging import print_log

from . import triton

Backend = Literal['auto', 'definition', 'triton']
Args = ParamSpec('Args')
Result = TypeVar('Result')

_asked_for: Backend = 'auto'


class Kernels(Protocol):
    """Kernels of one kind, for some of the formulas."""

    def why_not(self, asked_for: bool, operator: str, *args: Any) -> str | None:
        """Why there is no kernel for a formula and its arguments; None if there is."""

    def run(self, operator: str, *args: Any) -> Any:
        """Compute a formula."""


# Kernels by the name of their backend, the preferred ones first.
KERNELS: dict[str, Kernels] = {'triton': triton}


class Choice(NamedTuple):
    """What computes a formula, and why."""

    backend: str
    reason: str


class use:
    """Choose the backend of all formulas, from now on or within a ``with`` statement.

    ``'auto'`` takes a kernel where one fits the device and the arguments, and the definition
    otherwise; ``'definition'`` and ``'triton'`` take that, or stop.

    Raises:
        ValueError: If there is no such backend.
    """

    def __init__(self, backend: Backend) -> None:
        global _asked_for
        if backend not in ('auto', 'definition', 'triton'):
            raise ValueError(f"backend={backend!r}: expected 'auto', 'definition' or 'triton'")
        self._before, _asked_for = _asked_for, backend

    def __enter__(self) -> 'use':
        return self

    def __exit__(self, *_: object) -> None:
        global _asked_for
        _asked_for = self._before


def explain(operator: str, *args: Any) -> Choice:
    """Tell which backend a formula takes for its arguments, and why; computes nothing.

    As in ``explain('less_attention', v, logits, theta, psi, windows)``.
    """
    if _asked_for == 'definition':
        return Choice('definition', "asked for by use('definition')")
    reasons = []
    for backend, kernels in KERNELS.items():
        reason = kernels.why_not(_asked_for == backend, operator, *args)
        if reason is None:
            return Choice(backend, 'its kernel fits device and arguments')
        reasons.append(f'{backend}: {reason}')
    return Choice('definition', '; '.join(reasons) or 'there are no kernels')


def dispatched(definition: Callable[Args, Result]) -> Callable[Args, Result]:
    """Make a formula run on the backend that :class:`use` asks for.

    The formula raises a RuntimeError that says why where that backend cannot run.
    """
    name = definition.__name__

    @wraps(definition)
    def operator(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        values: tuple[Any, ...] = args
        if kwargs:
            values = signature(definition).bind(*args, **kwargs).args
        choice = explain(name, *values)
        if values[0].device.type == 'cuda' and not torch.compiler.is_compiling():
            _log(choice)
        if choice.backend != 'definition':
            return KERNELS[choice.backend].run(name, *values)
        if _asked_for not in ('auto', 'definition'):
            raise RuntimeError(f'{name}: asked for by use({_asked_for!r}), but {choice.reason}')
        return definition(*args, **kwargs)

    return operator


@cache
def _log(choice: Choice) -> None:
    """Say once a process which backend runs on a GPU; each further reason gets a line as well."""
    message = f'formulas of LaViT: {choice.backend} ({choice.reason})'
    print_log(message, logger='current', level=logging.INFO)
