"""Find image files and tell the readable ones."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
from mmengine.utils import scandir
from PIL import Image, UnidentifiedImageError

from mmlavit.errors import UserError

__all__ = ['find_images', 'no_mask', 'read_image', 'unreadable']

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')


def find_images(inputs: Sequence[str], ignored: Sequence[Path] = ()) -> dict[str, Path]:
    """List the images that files, folders and glob patterns stand for.

    A folder is searched with its subfolders for files with the suffix of an image, and a pattern
    for such files and folders; hidden ones are left out. A file is taken whatever its name.

    Args:
        inputs: Files, folders and patterns, where ``**`` matches any number of folders.
        ignored: Folders that are left out where they lie inside a folder that is searched.

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
        base, images = path, [path]
        if path.is_dir():
            images = _search(path)
        elif path.exists():
            base = path.parent
        elif glob.has_magic(name):
            base = _fixed_part(path)
            matches = base.glob(str(path.relative_to(base)))
            images = [image for match in matches for image in _search(match)]
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
                f'input {name!r}: no image found, expected files ending in ' + ', '.join(SUFFIXES)
            )
        found.update(os.path.normpath(image.absolute()) for image in images)
        bases.append(os.path.normpath(base.absolute()))
    root = os.path.commonpath(bases)
    return {Path(path).relative_to(root).as_posix(): Path(path) for path in sorted(found)}


def read_image(path: Path) -> np.ndarray:
    """Decode an image as the toolboxes do, or tell why not, which OpenCV does not.

    Args:
        path: The file.

    Returns:
        RGB, shape (height, width, 3), uint8.

    Raises:
        ValueError: If the file cannot be read as an image; the message tells why.
    """
    _decode(path)
    pixels = mmcv.imread(str(path), channel_order='rgb')
    if pixels is None:
        raise ValueError('OpenCV cannot decode it')
    return pixels


def unreadable(path: str, error: Exception) -> str:
    """Tell why a file could not be read as an image.

    Args:
        path: The file.
        error: What its reader raised, which is the answer where the file itself is in order.
    """
    try:
        if '://' not in path:
            _decode(Path(path))
    except ValueError as reason:
        return str(reason)
    return str(error) or type(error).__name__


def no_mask(path: str | None, found: str) -> str:
    """Tell that a file is no mask.

    Args:
        path: The file.
        found: What it is.
    """
    return f'{path}: {found}, expected a mask, one channel that holds class numbers'


def _decode(path: Path) -> None:
    try:
        with path.open('rb') as stream:
            if not stream.read(1):
                raise ValueError('the file is empty')
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        raise ValueError('no such file') from None
    except UnidentifiedImageError:
        raise ValueError('not an image of a known format') from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def _search(path: Path) -> list[Path]:
    if path.is_dir():
        files = scandir(path, SUFFIXES, recursive=True, case_sensitive=False)
        return [path / file for file in files]
    return [path] if path.suffix.lower() in SUFFIXES else []


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _fixed_part(pattern: Path) -> Path:
    """The folders of a pattern ahead of its first wildcard."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])
