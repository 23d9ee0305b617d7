"""Checks of arguments that several tools take."""

from pathlib import Path

import torch

from mmlavit.errors import UserError

__all__ = ['check_device', 'check_out']


def check_out(out: Path, overwrite: bool) -> None:
    """Stop where results would mix with what is there.

    Args:
        out: Folder of the results.
        overwrite: Whether the user asked for it.

    Raises:
        UserError: If ``out`` is no folder, or not empty and not to be overwritten.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f'--out {str(out)!r} is a file, expected a folder')
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise UserError(f'--out {str(out)!r} is not empty; --overwrite replaces results in it')


def check_device(name: str) -> str:
    """Stop where a device does not exist.

    Args:
        name: As torch calls it.

    Raises:
        UserError: If torch cannot use it.
    """
    try:
        torch.empty(1, device=name)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'--device {name!r} cannot be used: {reason}') from error
    return name
