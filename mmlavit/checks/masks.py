"""Whether the masks of mmseg hold classes; what cannot be judged is left alone."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import mmcv
import numpy as np
from mmengine import fileio

from mmlavit.errors import UserError

from .datasets import class_names, dataset_name, listing
from .image_files import no_mask, unreadable

__all__ = ['MaskValues', 'check_mask', 'check_masks', 'mask_values']


class MaskValues(NamedTuple):
    """What the masks of a dataset of mmseg may hold.

    Attributes:
        classes: Names of the classes.
        num_values: How many classes the files have, of which the dataset may have a choice.
        reduce_zero: Whether 0 is no class in the files.
        ignored: Labels that do not count.
    """

    classes: Sequence[str]
    num_values: int
    reduce_zero: bool
    ignored: Collection[int]

    def wrong_in_file(self, mask: np.ndarray) -> list[int]:
        """Find values of a file that are no class.

        Args:
            mask: What the file holds, shape (height, width).
        """
        found = np.unique(mask).tolist()
        return [value for value in found if self._is_wrong(_label(value, self.reduce_zero))]

    def wrong_in_labels(self, labels: np.ndarray) -> list[int]:
        """Find labels that are no class, as cheaply as every sample needs it.

        Args:
            labels: What mmseg's loader made of a file, shape (height, width).

        Returns:
            The values of the file.
        """
        wrong = labels >= len(self.classes)
        # What a choice of classes leaves out becomes 255.
        left_out = (255,) if self.num_values > len(self.classes) else ()
        for label in (*left_out, *self.ignored):
            wrong &= labels != label
        found = np.unique(labels[wrong]).tolist()
        return [label + (self.reduce_zero and label != 255) for label in found]

    def message(self, path: str | None, wrong: Sequence[int]) -> str:
        """Tell what is wrong with a mask.

        Args:
            path: The file.
            wrong: Its values that are no class.
        """
        first, last = int(self.reduce_zero), self.num_values - 1 + self.reduce_zero
        found = listing([str(value) for value in wrong])
        return (
            f'{path}: the mask has the values {found}, expected {first} to {last} for the '
            f'{self.num_values} classes ({listing(self.classes)}) or what is ignored: '
            f'{", ".join(map(str, sorted(self.ignored)))}'
            f'{" and 0, since reduce_zero_label is True" if self.reduce_zero else ""}'
        )

    def _is_wrong(self, label: int) -> bool:
        return not 0 <= label < self.num_values and label not in self.ignored


def mask_values(dataset: Any, ignored: Collection[int]) -> MaskValues | None:
    """What the masks of a dataset may hold, ``None`` where that is not known.

    Args:
        dataset: A dataset without a wrapper.
        ignored: Labels that do not count.
    """
    if _mask_loader(dataset) is None:
        return None
    classes = class_names(dataset) or ()
    # With a choice among the classes that the dataset comes with, masks have all of them.
    num_values = len(dataset.label_map or classes)
    return MaskValues(classes, num_values, bool(dataset.reduce_zero_label), ignored)


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
    loader, values = _mask_loader(dataset), mask_values(dataset, ignored)
    info = dataset.get_data_info(index) if loader is not None else {}
    path = info.get('seg_map_path')
    if path is None or values is None:
        return
    wrong = values.wrong_in_file(_read_mask(path, info['img_path'], loader))
    if wrong:
        raise UserError(values.message(path, wrong))


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
