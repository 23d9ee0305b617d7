"""Name the file that a dataset could not use."""

import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmengine.dataset import Compose
from mmengine.logging import print_log

from mmlavit.errors import UserError

from .image_files import no_mask, read_image
from .masks import MaskValues, mask_values

__all__ = ['CheckedPipeline', 'SampleError', 'name_files']

FILES = ('img_path', 'seg_map_path')


class SampleError(UserError):
    """A file of a dataset that cannot be used.

    Args:
        message: What is wrong. torch hands on the error of a worker process as a text that ends in
            its traceback; of that the message is kept.
    """

    def __init__(self, message: str) -> None:
        if message.startswith(f'Caught {type(self).__name__} in DataLoader worker'):
            message = re.split(rf'^[\w.]*{type(self).__name__}: ', message, flags=re.MULTILINE)[-1]
        super().__init__(message.strip())


class CheckedPipeline(Compose):
    """A pipeline whose errors name the file.

    OpenCV and Pillow do not know which file the bytes come from, and a mask of another size than
    its image may pass through a pipeline unseen. Nothing is retried: mmengine's ``max_refetch``
    concerns transforms that return nothing, and a file that cannot be read is no such case.

    Args:
        pipeline: The pipeline whose transforms run.
        values: What masks may hold as they are loaded, ``None`` for anything. Of many masks, the
            check before a run reads a few; on a GPU, a label beyond the classes of any other ends
            in a device-side assertion.
    """

    def __init__(self, pipeline: Compose, values: MaskValues | None = None) -> None:
        self.transforms = pipeline.transforms
        self.values = values

    def __call__(self, data: Any) -> Any:
        """Run the transforms.

        Args:
            data: What the dataset knows of a sample.

        Raises:
            SampleError: If a file cannot be read as an image, or masks do not fit the image or the
                classes. Errors of another cause stay as they are, and the log names the sample.
        """
        checked = False
        for transform in self.transforms:
            try:
                result = transform(data)
            except UserError:
                raise
            except Exception as error:
                if isinstance(data, dict):
                    _explain(data, error, type(transform).__name__)
                raise
            data = result
            if data is None:
                return None
            if not checked and isinstance(data, dict) and 'gt_seg_map' in data:
                _check_mask(data, self.values)
                checked = True
        return data


def name_files(dataset: Any, ignored: Collection[int] | None = None) -> None:
    """Let the errors of a dataset name the file.

    Args:
        dataset: A dataset without a wrapper.
        ignored: Labels of masks that do not count; ``None`` for masks that may hold anything.
    """
    pipeline = getattr(dataset, 'pipeline', None)
    if type(pipeline) is Compose:
        values = None if ignored is None else mask_values(dataset, ignored)
        dataset.pipeline = CheckedPipeline(pipeline, values)


def _explain(data: dict[str, Any], error: Exception, transform: str) -> None:
    for path in (data.get(key) for key in FILES):
        if not isinstance(path, str) or '://' in path:
            continue
        try:
            read_image(Path(path))
        except ValueError as reason:
            raise SampleError(f'{path}: {reason}') from error
    shape = data.get('ori_shape')
    for instance in data.get('instances') or ():
        mask = instance.get('mask') if isinstance(instance, dict) else None
        if shape and isinstance(mask, dict) and tuple(mask.get('size', shape)) != tuple(shape):
            raise SampleError(
                f'{data.get("img_path")}: the image has {shape[0]}x{shape[1]} pixels (height x '
                f'width), and a mask of its annotations {mask["size"][0]}x{mask["size"][1]}'
            ) from error
    sample = data.get('img_path', 'a sample')
    print_log(f'{transform} failed on {sample}', logger='current', level=logging.ERROR)


def _check_mask(data: dict[str, Any], values: MaskValues | None) -> None:
    mask, shape = data['gt_seg_map'], data.get('ori_shape')
    if mask.ndim != 2:
        found = f'an image of {mask.shape[-1]} channels'
        raise SampleError(no_mask(data.get('seg_map_path'), found))
    if shape and mask.shape != tuple(shape):
        raise SampleError(
            f'{data.get("seg_map_path")}: the mask has {mask.shape[0]}x{mask.shape[1]} pixels '
            f'(height x width), and its image {data.get("img_path")} {shape[0]}x{shape[1]}'
        )
    wrong = values.wrong_in_labels(mask) if values is not None else []
    if values is not None and wrong:
        raise SampleError(values.message(data.get('seg_map_path'), wrong))
