"""Whether the masks of mmseg hold classes; what cannot be judged is left alone."""

from collections.abc import Iterator
from typing import Any

import mmcv
import numpy as np
from mmengine import fileio
from PIL import ExifTags, Image

from mmlavit.datasets.guarded import SampleError, no_mask, other_size, why_unreadable

from .datasets import class_names, dataset_name, listing

__all__ = ['labels_of_mask', 'mask_loader', 'upright', 'wrong_masks']


def wrong_masks(dataset: Any, num_masks: int, training: bool) -> Iterator[str]:
    """Read some evenly spaced masks of a base dataset, and find the first that is wrong.

    Training data whose masks hold a single one of several classes teaches nothing. Of a few masks
    that may be chance, so the others are read as well until one holds another class. With
    ``num_masks=0``, none is looked at.
    """
    loader, classes = mask_loader(dataset), class_names(dataset) or ()
    if loader is None or not num_masks or not len(dataset):
        return
    if loader.reduce_zero_label not in (None, dataset.reduce_zero_label):
        yield (
            f'{dataset_name(dataset)}: reduce_zero_label is {dataset.reduce_zero_label} for the '
            f'dataset and {loader.reduce_zero_label} for {type(loader).__name__} in its pipeline'
        )
        return
    spaced = np.unique(np.linspace(0, len(dataset) - 1, num_masks).round().astype(int)).tolist()
    found: set[int] = set()
    for count, index in enumerate([*spaced, *(set(range(len(dataset))) - set(spaced))]):
        counting = found & set(range(len(classes)))
        if count >= len(spaced) and (len(counting) > 1 or len(classes) < 2 or not training):
            return
        try:
            found |= labels_of_mask(dataset, index)
        except SampleError as error:
            yield str(error)
            return
    counting = found & set(range(len(classes)))
    if training and len(classes) > 1 and len(counting) < 2:
        held = ', '.join(classes[label] for label in counting) or 'none'
        yield (
            f'{dataset_name(dataset)}: its {len(dataset)} masks hold {held} of the {len(classes)} '
            f'classes ({listing(classes)}), and labels that are ignored: '
            f'{listing(sorted(found - counting)) or "none"}. Number the classes from 0'
        )


def labels_of_mask(dataset: Any, index: int) -> set[int]:
    """Read one mask, and return the labels that it gives; without a known loader, none.

    Raises:
        SampleError: If the mask is missing, cannot be read, has another size than its image,
            several channels, or values that are no class.
    """
    loader = mask_loader(dataset)
    info = dataset.get_data_info(index) if loader is not None else {}
    path = info.get('seg_map_path')
    if path is None:
        return set()
    mask = _read(path, loader)
    image = info['img_path']
    size = None if '://' in image else upright(image)[0]
    if size is not None and size != mask.shape:
        raise SampleError(other_size(path, mask.shape, image, size))
    classes = class_names(dataset) or ()
    # With a choice among the classes that the dataset comes with, masks have all of them.
    mapped = dataset.label_map or {}
    num_values, zero = len(mapped or classes), int(bool(dataset.reduce_zero_label))
    labels = {v: 255 if zero and v in (0, 255) else v - zero for v in np.unique(mask).tolist()}
    wrong = [
        value
        for value, label in labels.items()
        if not 0 <= label < num_values and label != dataset.ignore_index
    ]
    if wrong:
        raise SampleError(
            f'{path}: the mask has the values {listing(wrong)}, expected {zero} to '
            f'{num_values - 1 + zero} for the {num_values} classes ({listing(classes)}) or what is '
            f'ignored: {dataset.ignore_index}'
            f'{" and 0, since reduce_zero_label is True" if zero else ""}'
        )
    return {mapped.get(label, label) for label in labels.values()}


def mask_loader(dataset: Any) -> Any:
    """The transform of mmseg that loads the masks of a base dataset, ``None`` without one."""
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    loaders = [transform for transform in transforms if hasattr(transform, 'reduce_zero_label')]
    known = class_names(dataset) is not None and hasattr(dataset, 'label_map')
    return loaders[0] if loaders and known else None


def upright(path: str) -> tuple[tuple[int, int] | None, bool]:
    """Height and width of an image as OpenCV turns it, and whether its EXIF orientation does so.

    The size is ``None`` where Pillow cannot tell.
    """
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            size = image.size if orientation >= 5 else image.size[::-1]
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return None, False
    return size, orientation != 1


def _read(path: str, loader: Any) -> np.ndarray:
    try:
        content = fileio.get(path, backend_args=loader.backend_args)
        mask = mmcv.imfrombytes(content, flag='unchanged', backend=loader.imdecode_backend)
    except Exception as error:
        # OpenCV and Pillow raise many types, none of which names the file
        reason = why_unreadable(path) or str(error) or type(error).__name__
        raise SampleError(f'{path}: {reason}') from error
    if mask is None:
        raise SampleError(f'{path}: {why_unreadable(path) or "not an image"}')
    if mask.squeeze().ndim != 2:
        raise SampleError(no_mask(path, mask.shape[-1]))
    return mask.squeeze()
