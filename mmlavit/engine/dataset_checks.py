"""Whether datasets are usable and fit the model; what cannot be judged is left alone."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import mmcv
import mmengine
import numpy as np
from mmengine import fileio
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from torch import nn

from mmlavit.errors import UserError

__all__ = [
    'base_datasets',
    'check_heads',
    'check_masks',
    'check_samples',
    'class_heads',
    'explain_empty',
]

LISTED_NAMES = 10
# Heads that tell the classes of a dataset apart, by where the toolboxes keep them. RPN heads, for
# one, do not.
CLASS_HEADS = re.compile(
    r'head(\.\d+)?|(.*\.)?(bbox_head|mask_head|decode_head|auxiliary_head)(\.\d+)?'
)


def base_datasets(dataset: Any) -> Iterator[Any]:
    """Unwrap repeated, concatenated and balanced datasets.

    Args:
        dataset: A dataset or a wrapper around some.

    Returns:
        The datasets that hold the samples.
    """
    inner = [
        *(getattr(dataset, 'datasets', None) or ()),
        *(getattr(dataset, name) for name in ('dataset', '_dataset') if hasattr(dataset, name)),
    ]
    if isinstance(dataset, BaseDataset) or not inner:
        yield dataset
        return
    for wrapped in inner:
        yield from base_datasets(wrapped)


def check_samples(dataset: Any) -> None:
    """Stop where a dataset has no samples, or loses classes of its annotation file.

    mmdet drops a class that a COCO annotation file lacks, and numbers the labels in the order of
    the file, whatever the order of the classes.

    Args:
        dataset: A dataset or a wrapper around some.

    Raises:
        UserError: If a category is missing or stands elsewhere, or a dataset is empty; the message
            names the files and what both sides have.
    """
    for base in base_datasets(dataset):
        _check_categories(base)
        _check_not_empty(base)


def explain_empty(config: dict[str, Any]) -> None:
    """Stop where a dataset that could not be built has no samples.

    Args:
        config: Config of a dataset or of a wrapper around some.

    Raises:
        UserError: As :func:`check_samples`.
    """
    inner = [config['dataset']] if 'dataset' in config else config.get('datasets', ())
    for wrapped in inner:
        explain_empty(wrapped)
    if not inner:
        check_samples(DATASETS.build({**config, 'serialize_data': False}))


def _check_not_empty(dataset: Any) -> None:
    if not hasattr(dataset, '__len__') or len(dataset):
        return
    filters = ', '.join(
        f'{name}={getattr(dataset, name)!r}'
        for name in ('img_suffix', 'filter_cfg')
        if getattr(dataset, name, None) is not None
    )
    raise UserError(f'{_name(dataset)} has no samples{f" with {filters}" if filters else ""}')


def _check_categories(dataset: Any) -> None:
    ids, classes = getattr(dataset, 'cat_ids', None), _classes(dataset)
    if ids is None or not hasattr(dataset, 'COCOAPI') or classes is None:
        return
    # The classes that a dataset comes with fit its own files, which are large.
    own = getattr(type(dataset), 'METAINFO', {}).get('classes')
    if len(ids) == len(classes) and list(classes) == list(own or ()):
        return
    annotations = mmengine.load(
        dataset.ann_file, file_format='json', backend_args=dataset.backend_args
    )
    names = {category['id']: category['name'] for category in annotations['categories']}
    missing = [name for name in classes if name not in names.values()]
    if missing:
        raise UserError(
            f'{_name(dataset)}: {len(missing)} of its {len(classes)} classes are no category of '
            f'the annotation file: {_listing(missing)}; the file has {_listing(names.values())}. '
            'Set metainfo=dict(classes=...) of the dataset'
        )
    found = [names[category] for category in ids]
    if found != list(classes):
        raise UserError(
            f'{_name(dataset)}: mmdet numbers labels in the order of the annotation file, '
            f'{_listing(found)}, and metainfo has the classes as {_listing(classes)}. '
            'Write them in the order of the file'
        )


def class_heads(model: nn.Module) -> dict[str, nn.Module]:
    """Find the heads that tell the classes of a dataset apart.

    Args:
        model: The model without wrappers.

    Returns:
        The heads by name. Class-agnostic ones are left out, and models that read their classes
        from a text have none.
    """
    if hasattr(model, 'language_model'):
        return {}
    return {
        name: module
        for name, module in model.named_modules()
        if CLASS_HEADS.fullmatch(name)
        and isinstance(getattr(module, 'num_classes', None), int)
        and not getattr(module, 'class_agnostic', False)
        # STDCHead of mmseg tells the boundary from the rest
        and not hasattr(module, 'boundary_threshold')
    }


def check_heads(model: nn.Module, dataset: Any) -> None:
    """Stop where a head has another number of classes than the dataset.

    Args:
        model: The model without wrappers.
        dataset: A dataset without a wrapper.

    Raises:
        UserError: If a head disagrees; the message names both numbers.
    """
    classes = _classes(dataset)
    if classes is None:
        return
    # A panoptic dataset has classes that its box and mask heads do not see.
    classes = dataset.metainfo.get('thing_classes', classes)
    wrong = [
        f'model.{name}.num_classes is {head.num_classes}'
        for name, head in class_heads(model).items()
        if head.num_classes != len(classes)
    ]
    if wrong:
        raise UserError(
            f'{", ".join(wrong)}, but {_name(dataset)} has {len(classes)} classes: '
            f'{_listing(classes)}'
        )


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
    classes = _classes(dataset)
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    loaders = [t for t in transforms if hasattr(t, 'reduce_zero_label')]
    if classes is None or not loaders or not num_masks or not hasattr(dataset, 'label_map'):
        return
    loader, reduce_zero = loaders[0], dataset.reduce_zero_label
    if loader.reduce_zero_label not in (None, reduce_zero):
        raise UserError(
            f'{_name(dataset)}: reduce_zero_label is {reduce_zero} for the dataset and '
            f'{loader.reduce_zero_label} for {type(loader).__name__} in its pipeline'
        )
    # With a choice among the classes that the dataset comes with, masks have all of them.
    num_values = len(dataset.label_map or classes)
    expected = f'{int(reduce_zero)} to {num_values - 1 + reduce_zero} for the {num_values} classes'
    for i in np.unique(np.linspace(0, len(dataset) - 1, num_masks).round().astype(int)):
        info = dataset.get_data_info(int(i))
        path = info.get('seg_map_path')
        if path is None:
            return
        mask = _read_mask(path, info['img_path'], loader)
        wrong = [
            str(value)
            for value in np.unique(mask).tolist()
            if not 0 <= (label := _label(value, reduce_zero)) < num_values and label not in ignored
        ]
        if wrong:
            raise UserError(
                f'{path}: the mask has the values {_listing(wrong)}, expected {expected} '
                f'({_listing(classes)}) or what is ignored: {", ".join(map(str, sorted(ignored)))}'
                f'{" and 0, since reduce_zero_label is True" if reduce_zero else ""}'
            )


def _read_mask(path: str, image: str, loader: Any) -> np.ndarray:
    try:
        content = fileio.get(path, backend_args=loader.backend_args)
    except FileNotFoundError as error:
        raise UserError(f'{path}: no such mask; it belongs to {image}') from error
    mask = mmcv.imfrombytes(content, flag='unchanged', backend=loader.imdecode_backend)
    if mask is None or mask.squeeze().ndim != 2:
        found = 'no image' if mask is None else f'an image of {mask.shape[-1]} channels'
        raise UserError(f'{path}: {found}, expected a mask, one channel that holds class numbers')
    return mask


def _label(value: int, reduce_zero: bool) -> int:
    if not reduce_zero:
        return value
    return 255 if value in (0, 255) else value - 1


def _classes(dataset: Any) -> Sequence[str] | None:
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if isinstance(classes, str):
        raise UserError(
            f'{_name(dataset)}: metainfo has classes={classes!r}, expected a sequence of names; '
            f'for one class write ({classes!r},) with the comma'
        )
    return classes


def _name(dataset: Any) -> str:
    prefixes = getattr(dataset, 'data_prefix', None) or {}
    where = (
        getattr(dataset, 'ann_file', None)
        or prefixes.get('img_path')
        or getattr(dataset, 'data_root', None)
    )
    return f'{type(dataset).__name__}{f" ({where})" if where else ""}'


def _listing(names: Collection[str]) -> str:
    rest = len(names) - LISTED_NAMES
    more = f' and {rest} more' if rest > 0 else ''
    return ', '.join(list(names)[:LISTED_NAMES]) + more
