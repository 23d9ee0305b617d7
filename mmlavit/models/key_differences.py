"""Compare the keys and shapes of a state dict with what a model expects."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mmlavit.checkpoints import state_dict_of
from mmlavit.errors import UserError

from .layers.resize import is_adapted

LISTED_KEYS = 10


def check_overlaps(checkpoint: Any, model: nn.Module, source: str) -> None:
    """Stop where not a single tensor of a checkpoint fits a model.

    Raises:
        UserError: The message names ``source`` and the first keys of both sides.
    """
    found, expected = _state_dict(checkpoint, source), _compared(model.state_dict())
    if any(key in found and _fits(key, found[key], expected[key]) for key in expected):
        return
    raise UserError(
        f'{source}: no tensor fits this {type(model).__name__}:\n'
        f'  in the file: {listing(found)}\n  in the model: {listing(expected)}'
    )


def check_belongs(checkpoint: Any, model: nn.Module, source: str) -> None:
    """Stop where the keys and shapes of a checkpoint are not those of a model.

    Raises:
        UserError: The message names ``source`` and the first keys of every kind of difference.
    """
    found = _state_dict(checkpoint, source)
    differences = key_differences(found, _compared(model.state_dict()))
    if differences:
        raise UserError(
            f'{source} does not belong to this {type(model).__name__}:\n' + '\n'.join(differences)
        )


def key_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Describe how a state dict differs from the expected one, in an indented line for each kind.

    Tensors that the layers adapt may differ in shape.
    """
    both = [key for key in expected if key in found]
    kinds = {
        'missing from the file': [key for key in expected if key not in found],
        'not in the model': [key for key in found if key not in expected],
        'of another shape': [
            f'{key} {_shape(found[key])} in the file, {_shape(expected[key])} in the model'
            for key in both
            if not _fits(key, found[key], expected[key])
        ],
    }
    return [f'  {kind}: {listing(keys)}' for kind, keys in kinds.items() if keys]


def listing(keys: Iterable[Any]) -> str:
    """Count keys and name the first ones."""
    names = [str(key) for key in keys]
    more = f' and {len(names) - LISTED_KEYS} more' if len(names) > LISTED_KEYS else ''
    return f'{len(names)}: {", ".join(names[:LISTED_KEYS])}{more}'


def _fits(key: str, found: Any, expected: Any) -> bool:
    shapes = _shape(found), _shape(expected)
    return shapes[0] == shapes[1] or is_adapted(key, *shapes)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, 'shape', ()))


def _state_dict(checkpoint: Any, source: str) -> dict[str, Any]:
    if not isinstance(checkpoint, dict):
        raise UserError(f'{source} holds a {type(checkpoint).__name__}, expected a state dict')
    return _compared(checkpoint)


def _compared(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in state_dict_of(state_dict).items()
        if not (key.startswith('data_preprocessor.') or key.endswith('.num_batches_tracked'))
    }
