"""Writes files that are there as a whole or not at all."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from mmlavit.errors import UserError

__all__ = ['ATOMIC', 'AtomicBackend', 'remove_leftovers']

ATOMIC = 'mmlavit_atomic'


@register_backend(ATOMIC)
class AtomicBackend(LocalBackend):
    """mmengine's backend of local files, whose writes replace a file in one step.

    The bytes go to a hidden file in the same folder and reach the disk before that file gets its
    name. Whatever stops the writer, a reader finds the file of before or the new one.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file.

        Args:
            obj: The content.
            filepath: The file; its folder is made where it is missing.

        Raises:
            UserError: If the file cannot be written, as on a full disk; an older file of that name
                is as it was.
        """
        path = Path(filepath)
        temporary = path.with_name(f'.{path.name}.tmp')
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open('wb') as stream:
                stream.write(obj)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise UserError(_explain(path, len(obj), error)) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write a text file.

        Args:
            obj: The content.
            filepath: The file; its folder is made where it is missing.
            encoding: How characters become bytes.

        Raises:
            UserError: As :meth:`put`.
        """
        self.put(obj.encode(encoding), filepath)


def remove_leftovers(folder: str | Path) -> list[Path]:
    """Remove what a writer that was killed has left.

    Args:
        folder: Where to look; it need not exist.

    Returns:
        The files that were removed.
    """
    found = sorted(Path(folder).glob('.*.pth.tmp'))
    for path in found:
        path.unlink(missing_ok=True)
    return found


def _sync_folder(folder: Path) -> None:
    # Some network file systems do not sync folders; the new name is there nevertheless.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _explain(path: Path, size: int, error: OSError) -> str:
    reason = error.strerror or str(error)
    try:
        free = f', {shutil.disk_usage(path.parent).free:,} are free in {path.parent}'
    except OSError:
        free = ''
    kept = ', and the one that was there is as it was' if path.exists() else ''
    return f'{path} cannot be written: {reason}; it takes {size:,} bytes{free}{kept}'
