"""Find image files, and tell what a model takes for an image."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.utils import scandir

from mmlavit.errors import UserError
from mmlavit.models import LaViT

__all__ = ['channels_of', 'find_images']

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')


def channels_of(model: Any) -> int:
    """Channels of the images that a model takes.

    Of other backbones than LaViT, which have no common name for it, 3 is assumed.
    """
    backbone = model.backbone
    return backbone.in_channels if isinstance(backbone, LaViT) else 3


def find_images(inputs: Sequence[str], ignored: Sequence[Path] = ()) -> dict[str, Path]:
    """List the images that files, folders and glob patterns stand for.

    A folder is searched with its subfolders for files with the suffix of an image, and a pattern,
    where ``**`` matches any number of folders, for such files and folders or for the suffix that it
    ends in; hidden ones are left out, and so are the ``ignored`` folders inside of a searched one.
    A file is taken whatever its name.

    Returns:
        Paths by name, sorted. A name is the path below the input: below the folder, the folder of
        the file, or the pattern's part ahead of its first wildcard. Names of several inputs start
        from the folder that holds them all.

    Raises:
        UserError: If an input does not exist or stands for no image.
    """
    found: set[str] = set()
    bases: list[str] = []
    for name in inputs:
        path = Path(name).expanduser()
        base, images, suffixes = path, [path], list(SUFFIXES)
        if path.is_dir():
            images = _search(path, suffixes)
        elif path.exists():
            base = path.parent
        elif glob.has_magic(name):
            first = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
            base = Path(*path.parts[:first])
            if path.suffix and not glob.has_magic(path.suffix):
                suffixes.append(path.suffix.lower())
            matches = base.glob(str(path.relative_to(base)))
            images = [image for match in matches for image in _search(match, suffixes)]
        else:
            raise UserError(f'input {name!r} does not exist, seen from {Path.cwd()}')
        if not path.is_file():
            inside = [folder for folder in ignored if not _is_below(base, folder)]
            images = [
                image
                for image in images
                if not any(_is_below(image, folder) for folder in inside)
                # such as .ipynb_checkpoints
                and not any(part.startswith('.') for part in image.relative_to(base).parts)
            ]
        if not images:
            raise UserError(
                f'input {name!r}: no image found, expected files ending in ' + ', '.join(suffixes)
            )
        found.update(os.path.normpath(image.absolute()) for image in images)
        bases.append(os.path.normpath(base.absolute()))
    root = os.path.commonpath(bases)
    return {Path(path).relative_to(root).as_posix(): Path(path) for path in sorted(found)}


def _search(path: Path, suffixes: list[str]) -> list[Path]:
    if path.is_dir():
        files = scandir(path, tuple(suffixes), recursive=True, case_sensitive=False)
        return [path / file for file in files]
    return [path] if path.suffix.lower() in suffixes else []


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
