"""A dataset that names the file where a sample cannot be loaded or holds impossible labels."""

import logging
import re
import traceback
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from mmlavit.errors import UserError

__all__ = ['GuardedDataset', 'SampleError', 'no_mask', 'other_size', 'why_unreadable']


class SampleError(UserError):
    """A file of a dataset that cannot be used.

    torch hands on the error of a worker process as a text that ends in its traceback; of that the
    message is kept.
    """

    def __init__(self, message: str) -> None:
        name = type(self).__name__
        if message.startswith(f'Caught {name} in DataLoader worker'):
            message = re.split(rf'^[\w.]*{name}: ', message, flags=re.MULTILINE)[-1]
        super().__init__(message.strip())


class GuardedDataset(Dataset):
    """Another dataset, whose errors name the file.

    OpenCV and Pillow do not know which file the bytes come from, and on a GPU a label beyond the
    classes ends in a device-side assertion. Everything but ``dataset`` is read from and written to
    the dataset inside.
    """

    def __init__(self, dataset: Any) -> None:
        vars(self)['dataset'] = dataset

    def __getattr__(self, name: str) -> Any:
        # Special methods are looked up by pickle and torch, whose `__getitems__` would pass by the
        # guard; `dataset` is missing while pickle builds this object.
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(f'{type(self).__name__} has no attribute {name!r}')
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'dataset':
            vars(self)[name] = value
        else:
            setattr(self.dataset, name, value)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Load a sample.

        Raises:
            SampleError: If a file cannot be read, a mask does not fit its image, or the packed
                mask holds a label beyond the classes. Errors of another cause stay as they are,
                and the log names the sample.
        """
        try:
            sample = self.dataset[index]
        except UserError:
            raise
        except Exception as error:
            known = _last_results(error)
            problem = _wrong_file(known)
            if problem:
                raise SampleError(problem) from error
            where = known.get('img_path', f'sample {index}')
            print_log(f'loading failed on {where}', logger='current', level=logging.ERROR)
            raise
        problem = self._wrong_mask(sample)
        if problem:
            raise SampleError(problem)
        return sample

    def _wrong_mask(self, sample: Any) -> str:
        """What is wrong with the mask that mmseg has packed, empty if nothing."""
        packed: Any = sample.get('data_samples') if isinstance(sample, dict) else None
        mask = getattr(getattr(packed, 'gt_sem_seg', None), 'data', None)
        if not isinstance(mask, torch.Tensor):
            return ''
        path, image = packed.get('seg_map_path'), packed.get('img_path')
        if mask.ndim != 3 or mask.shape[0] != 1:
            return no_mask(path, mask.shape[-1])
        size, shapes = tuple(mask.shape[1:]), (packed.get('img_shape'), packed.get('ori_shape'))
        # A pipeline of testing leaves the mask as large as the file.
        if None not in shapes and size not in [tuple(shape[:2]) for shape in shapes]:
            return other_size(path, size, image, shapes[0])
        classes = (getattr(self, 'metainfo', None) or {}).get('classes')
        ignored = _first(self.dataset, 'ignore_index')
        if not classes or ignored is None:
            return ''
        wrong = mask[((mask < 0) | (mask >= len(classes))) & (mask != ignored)]
        if not wrong.numel():
            return ''
        found = ', '.join(map(str, wrong.unique()[:10].tolist()))
        return (
            f'{path}: the mask gives the labels {found}, expected 0 to {len(classes) - 1} for the '
            f"{len(classes)} classes, or the dataset's ignore_index, {ignored}"
        )


def why_unreadable(path: str) -> str:
    """Why a file cannot be read as an image, empty where Pillow can or does not know its kind."""
    file = Path(path)
    if '://' in path:
        return ''
    if not file.is_file():
        return 'no such file'
    if not file.stat().st_size:
        return 'the file is empty'
    try:
        with Image.open(file) as image:
            image.load()
    except UnidentifiedImageError:
        known = file.suffix.lower() in Image.registered_extensions()
        return 'not an image of a known format' if known else ''
    except Image.DecompressionBombError:
        return ''
    except (OSError, SyntaxError, EOFError) as error:
        return str(error)
    return ''


def no_mask(path: str | None, channels: int) -> str:
    """Say that a file is a colour image where a mask is expected."""
    return (
        f'{path}: an image of {channels} channels, expected a mask, one channel that holds class '
        'numbers'
    )


def other_size(path: str | None, mask: Any, image_path: str | None, image: Any) -> str:
    """Say that a mask and its image have different sizes, each (height, width)."""
    return (
        f'{path}: the mask has {mask[0]}x{mask[1]} pixels (height x width), and its image '
        f'{image_path} {image[0]}x{image[1]}'
    )


def _last_results(error: Exception) -> dict[str, Any]:
    """What the pipeline knew of the sample that it failed on.

    An index does not tell: a dataset may draw another sample instead, or mix several.
    """
    found: dict[str, Any] = {}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, dict) and isinstance(value.get('img_path'), str):
                found = value
    return found


def _wrong_file(known: dict[str, Any]) -> str:
    """Name the file that a pipeline has failed on, empty where the files are in order."""
    image, mask = known.get('img_path'), known.get('seg_map_path')
    for path, loaded in ((image, 'img'), (mask, 'gt_seg_map')):
        if path and known.get(loaded) is None:
            reason = why_unreadable(path)
            return f'{path}: {reason}' if reason else ''
    shape, pixels = known.get('ori_shape'), known.get('gt_seg_map')
    if pixels is not None and pixels.ndim != 2:
        return no_mask(mask, pixels.shape[-1])
    if pixels is not None and pixels.shape != known['img'].shape[:2] and shape:
        return other_size(mask, pixels.shape, image, known['img'].shape)
    for instance in known.get('instances') or ():
        rle = instance.get('mask') if isinstance(instance, dict) else None
        if shape and isinstance(rle, dict) and tuple(rle.get('size', shape)) != tuple(shape[:2]):
            return (
                f'{image}: the image has {shape[0]}x{shape[1]} pixels (height x width), and a mask '
                f'of its annotations {rle["size"][0]}x{rle["size"][1]}'
            )
    return ''


def _first(dataset: Any, name: str) -> Any:
    """An attribute of a dataset, or of the first one that it wraps."""
    while dataset is not None and not hasattr(dataset, name):
        inner = getattr(dataset, 'dataset', None)
        dataset = inner or next(iter(getattr(dataset, 'datasets', ())), None)
    return getattr(dataset, name, None)
