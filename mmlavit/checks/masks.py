"""Whether the masks of mmseg hold classes; what cannot be judged is left alone."""

from collections.abc import Collection
from typing import Any

import mmcv
import numpy as np
from mmengine import fileio

from mmlavit.errors import UserError

from .datasets import class_names, dataset_name, listing
from .image_files import no_mask, unreadable

__all__ = ['check_mask', 'check_masks']


def check_masks(dataset: Any, ignored: Collection[int], num_masks: int) -> None:
    """Stop where a mask of mmseg holds what is no class; some evenly spaced masks are read.

    Args:
        dataset: A dataset without a wrapper.
        ignored: Labels that do not count.
        num_masks: How many masks to read at most.

    Raises:
        UserError: If a mask is missing, has several channels or values that are no class, or the
            dataset and its pipeline disagree on what 0 means.
    """
    loader = _mask_loader(dataset)
    if loader is None or not num_masks:
        return
    if loader.reduce_zero_label not in (None, dataset.reduce_zero_label):
        raise UserError(
            f'{dataset_name(dataset)}: reduce_zero_label is {dataset.reduce_zero_label} for the '
            f'dataset and {loader.reduce_zero_label} for {type(loader).__name__} in its pipeline'
        )
    for i in np.unique(np.linspace(0, len(dataset) - 1, num_masks).round().astype(int)):
        check_mask(dataset, int(i), ignored)


def check_mask(dataset: Any, index: int, ignored: Collection[int]) -> None:
    """Stop where one mask of mmseg holds what is no class.

    Args:
        dataset: A dataset without a wrapper.
        index: Number of the sample.
        ignored: Labels that do not count.

    Raises:
        UserError: If the mask is missing, cannot be read, or has several channels or values that
            are no class.
    """
    loader = _mask_loader(dataset)
    info = dataset.get_data_info(index) if loader is not None else {}
    path = info.get('seg_map_path')
    if path is None:
        return
    classes, reduce_zero = class_names(dataset) or (), dataset.reduce_zero_label
    # With a choice among the classes that the dataset comes with, masks have all of them.
    num_values = len(dataset.label_map or classes)
    expected = f'{int(reduce_zero)} to {num_values - 1 + reduce_zero} for the {num_values} classes'
    mask = _read_mask(path, info['img_path'], loader)
    wrong = [
        str(value)
        for value in np.unique(mask).tolist()
        if not 0 <= (label := _label(value, reduce_zero)) < num_values and label not in ignored
    ]
    if wrong:
        raise UserError(
            f'{path}: the mask has the values {listing(wrong)}, expected {expected} '
            f'({listing(classes)}) or what is ignored: {", ".join(map(str, sorted(ignored)))}'
            f'{" and 0, since reduce_zero_label is True" if reduce_zero else ""}'
        )


def _mask_loader(dataset: Any) -> Any:
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    loaders = [t for t in transforms if hasattr(t, 'reduce_zero_label')]
    if class_names(dataset) is None or not loaders or not hasattr(dataset, 'label_map'):
        return None
    return loaders[0]


def _read_mask(path: str, image: str, loader: Any) -> np.ndarray:
    try:
        content = fileio.get(path, backend_args=loader.backend_args)
    except FileNotFoundError as error:
        raise UserError(f'{path}: no such mask; it belongs to {image}') from error
    try:
        mask = mmcv.imfrombytes(content, flag='unchanged', backend=loader.imdecode_backend)
    except Exception as error:
        # OpenCV and Pillow raise many types, none of which names the file
        raise UserError(f'{path}: the mask cannot be read: {unreadable(path, error)}') from error
    if mask is None or mask.squeeze().ndim != 2:
        found = 'no image' if mask is None else f'an image of {mask.shape[-1]} channels'
        raise UserError(no_mask(path, found))
    return mask


def _label(value: int, reduce_zero: bool) -> int:
    if not reduce_zero:
        return value
    return 255 if value in (0, 255) else value - 1
