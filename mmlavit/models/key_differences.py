"""Compare the keys and shapes of a state dict with what a model expects."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mmlavit.errors import UserError

from .layers import is_window_transform

LISTED_KEYS = 10


def check_belongs(checkpoint: Any, model: nn.Module, source: str) -> None:
    """Compare the keys and shapes of a checkpoint with those of a model.

    Args:
        checkpoint: What a file holds.
        model: The model that it should belong to.
        source: What the message calls the file.

    Raises:
        UserError: If the checkpoint does not belong to the model; the message names the file and
            the first keys of every kind.
    """
    if not isinstance(checkpoint, dict):
        raise UserError(f'{source} holds a {type(checkpoint).__name__}, expected a state dict')
    found = _compared(checkpoint.get('state_dict', checkpoint))
    differences = key_differences(found, _compared(model.state_dict()))
    if differences:
        raise UserError(
            f'{source} does not belong to this {type(model).__name__}:\n' + '\n'.join(differences)
        )


def key_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Describe how a state dict differs from the expected one, a line for each kind.

    Window transforms may differ in shape, since the backbone resizes them.

    Args:
        found: What the file holds.
        expected: The state dict of the model.

    Returns:
        Indented lines, empty if everything fits.
    """
    shapes = {key: (_shape(found[key]), _shape(expected[key])) for key in expected if key in found}
    kinds = {
        'missing from the file': [key for key in expected if key not in found],
        'not in the model': [key for key in found if key not in expected],
        'of another shape': [
            f'{key} {file} in the file, {model} in the model'
            for key, (file, model) in shapes.items()
            if file != model and not is_window_transform(key)
        ],
    }
    return [f'  {kind}: {listing(keys)}' for kind, keys in kinds.items() if keys]


def listing(keys: Iterable[Any], most: int = LISTED_KEYS) -> str:
    """Count keys and name the first ones.

    Args:
        keys: The keys.
        most: How many to name.
    """
    names = [str(key) for key in keys]
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return f'{len(names)}: {", ".join(names[:most])}{more}'


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, 'shape', ()))


def _compared(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    state = {str(key).removeprefix('module.'): value for key, value in state_dict.items()}
    return {
        key: value
        for key, value in state.items()
        if not (key.startswith('data_preprocessor.') or key.endswith('.num_batches_tracked'))
    }
