"""Writes files that are there as a whole or not at all."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from mmlavit.errors import UserError

__all__ = ['AtomicBackend']


@register_backend('mmlavit_atomic')
class AtomicBackend(LocalBackend):
    """mmengine's backend of local files, whose writes replace a file in one step.

    The bytes go to a hidden file in the same folder and reach the disk before that file gets its
    name. Whatever stops the writer, a reader finds the file of before or the new one; what a killed
    one left, the next write of the same file takes over.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, and its folder where that is missing.

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
        except OSError as error:
            free, kept = '', ', the one of before is as it was' if path.exists() else ''
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
                free = f', {shutil.disk_usage(path.parent).free:,} are free in {path.parent}'
            raise UserError(
                f'{path} cannot be written: {error.strerror}; '
                f'it takes {len(obj):,} bytes{free}{kept}'
            ) from error
        # The name reaches the disk, too; some network file systems do not sync folders.
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write a text file as :meth:`put` does."""
        self.put(obj.encode(encoding), filepath)
