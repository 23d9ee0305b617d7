"""Read a checkpoint without running code that it names."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_torch_safe_globals

from mmlavit.errors import UserError

from .launch import check_checkpoint

__all__ = ['read_checkpoint']


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint of mmengine into memory of the CPU.

    mmengine unpickles anything where its safe loading fails; here a local file that needs that is
    refused. A URL is left to mmengine.

    Args:
        path: A path or URL.

    Raises:
        UserError: If there is no such file, it is no checkpoint, or it holds objects other than
            tensors, plain containers and what mmengine declares safe.
    """
    check_checkpoint(path)
    try:
        if '://' in path:
            checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
        else:
            with torch.serialization.safe_globals(get_torch_safe_globals()):
                checkpoint = torch.load(
                    Path(path).expanduser(), map_location='cpu', weights_only=True
                )
    except UnpicklingError as error:
        raise UserError(f'checkpoint {path!r} cannot be read safely: {_cause(error)}') from error
    except (EOFError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f'checkpoint {path!r} cannot be read: {_cause(error)}') from error
    state_dict = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    if not isinstance(state_dict, dict) or not state_dict:
        found = (
            f'a dict with the keys {", ".join(map(str, list(checkpoint)[:10])) or "(none)"}'
            if isinstance(checkpoint, dict)
            else f'a {type(checkpoint).__name__}'
        )
        raise UserError(f'checkpoint {path!r} has no state_dict: found {found}')
    return checkpoint


def _cause(error: Exception) -> str:
    """The line of torch's long messages that names the object, else the first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.startswith('WeightsUnpickler error')]
    return (named or lines or [type(error).__name__])[0]
