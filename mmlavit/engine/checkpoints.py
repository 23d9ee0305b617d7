"""Read the checkpoint of a model."""

from typing import Any

from mmlavit.checkpoints import load_checkpoint
from mmlavit.errors import UserError

__all__ = ['read_checkpoint']


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint of mmengine into memory of the CPU, as data.

    Args:
        path: A path or URL.

    Raises:
        UserError: If there is no such file, it is no checkpoint with a state dict, or it holds what
            :func:`mmlavit.checkpoints.load_checkpoint` does not allow.
    """
    checkpoint = load_checkpoint(path)
    if not checkpoint.get('state_dict'):
        keys = ', '.join(map(str, list(checkpoint)[:10])) or '(none)'
        raise UserError(f'checkpoint {path!r} has no state_dict: found a dict with the keys {keys}')
    return checkpoint
