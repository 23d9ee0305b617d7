"""Turn CIFAR-10 as downloaded into folders of images, which the configs of real_data read.

SOURCE is ``cifar-10-python.tar.gz`` of https://www.cs.toronto.edu/~kriz/cifar.html, or the folder
``cifar-10-batches-py`` in it. Example::

    python tools/dataset_converters/cifar10.py cifar-10-python.tar.gz --out data/cifar10

writes ``data/cifar10/{train,test}/CLASS/00000.png``, numbered in the order of the source.
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmlavit.cli.converters import existing, run_converter, subfolder
from mmlavit.errors import UserError

# In the order of the labels.
CLASSES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
FOLDER = 'cifar-10-batches-py'
BATCHES = {'train': [f'data_batch_{number}' for number in range(1, 6)], 'test': ['test_batch']}


class BatchUnpickler(pickle.Unpickler):
    """Reads the arrays and plain containers of a batch; calls nothing else that a file names."""

    allowed = {
        'numpy.core.multiarray._reconstruct': np.empty(0).__reduce__()[0],
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Find what rebuilds an array."""
        if f'{module}.{name}' not in self.allowed:
            raise pickle.UnpicklingError(f'it holds {module}.{name}, and no batch does')
        return self.allowed[f'{module}.{name}']


def read_files(source: Path) -> dict[str, bytes]:
    """The content of all batches, from the folder or the archive, which is not unpacked."""
    names = [name for split in BATCHES.values() for name in split]
    if existing(source).is_dir():
        folder = subfolder(source, FOLDER)
        return {name: existing(folder / name).read_bytes() for name in names}
    try:
        with tarfile.open(source) as archive:
            streams = {name: archive.extractfile(f'{FOLDER}/{name}') for name in names}
            return {name: (stream or io.BytesIO()).read() for name, stream in streams.items()}
    except (tarfile.TarError, zlib.error, EOFError, KeyError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        raise UserError(f'{source} is no archive of CIFAR-10: {text}') from error


def read_batch(name: str, content: bytes) -> tuple[np.ndarray, list[int]]:
    """Images, of shape ``(N, 32, 32, 3)``, and labels of a batch.

    Raises:
        UserError: If the content is anything else.
    """
    try:
        batch = BatchUnpickler(io.BytesIO(content), encoding='bytes').load()
        data, labels = batch[b'data'], list(map(int, batch[b'labels']))
        if data.dtype != np.uint8 or data.shape != (len(labels), 3 * 32 * 32):
            text = f'found {data.dtype} of shape {data.shape}, and {len(labels)} labels'
            raise ValueError(f'{text}, expected uint8 of shape (N, 3072), and N labels')
        if unknown := set(labels) - set(range(len(CLASSES))):
            raise ValueError(f'found the label {unknown.pop()}, expected 0 to {len(CLASSES) - 1}')
    except Exception as error:
        # Bytes that are damaged, or made to harm, raise anything.
        text = f'{type(error).__name__}: {error}'
        raise UserError(f'{name} is no batch of CIFAR-10: {text}') from error
    # each row holds all of red, then green, then blue
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def write_cifar10(source: Path, out: Path) -> str:
    """Write each split, and say how many images it has."""
    files, counts = read_files(source), []
    for split, names in BATCHES.items():
        number = 0
        for name in CLASSES:
            (out / split / name).mkdir(parents=True)
        for batch in names:
            for image, label in zip(*read_batch(batch, files[batch]), strict=True):
                path = out / split / CLASSES[label] / f'{number:05}.png'
                Image.fromarray(image).save(path)
                number += 1
        counts.append(f'{number} {split}')
    return f'{" + ".join(counts)} images of 32 x 32 pixels'


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_converter(__doc__, 'cifar10', write_cifar10, argv)


if __name__ == '__main__':
    main()
