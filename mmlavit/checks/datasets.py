"""Whether datasets are usable and fit the model; what cannot be judged is left alone."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import mmengine
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from torch import nn

from mmlavit.errors import UserError

__all__ = [
    'base_datasets',
    'check_heads',
    'check_labels',
    'check_samples',
    'class_heads',
    'class_names',
    'dataset_name',
    'explain_empty',
    'listing',
    'wrong_labels',
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
    """Stop where a dataset has no samples, or loses images or classes of its annotation file.

    mmdet drops a class that a COCO annotation file lacks, and numbers the labels in the order of
    the file, whatever the order of the classes.

    Args:
        dataset: A dataset or a wrapper around some.

    Raises:
        UserError: If image ids are not unique, a category is missing or stands elsewhere, or a
            dataset is empty; the message names the files and what both sides have.
    """
    for base in base_datasets(dataset):
        _check_categories(base)
        _check_not_empty(base)


def explain_empty(config: dict[str, Any]) -> None:
    """Stop where a dataset that could not be built has no samples.

    Args:
        config: Config of a dataset or of a wrapper around some. One that cannot be built for
            another reason is left alone, since the caller has its error.

    Raises:
        UserError: As :func:`check_samples`.
    """
    inner = [config['dataset']] if 'dataset' in config else config.get('datasets', ())
    for wrapped in inner:
        explain_empty(wrapped)
    if inner:
        return
    try:
        dataset = DATASETS.build({**config, 'serialize_data': False})
    except Exception:
        # Not every dataset has the argument.
        return
    check_samples(dataset)


def _check_not_empty(dataset: Any) -> None:
    if not hasattr(dataset, '__len__') or len(dataset):
        return
    filters = ', '.join(
        f'{name}={getattr(dataset, name)!r}'
        for name in ('img_suffix', 'filter_cfg')
        if getattr(dataset, name, None) is not None
    )
    raise UserError(
        f'{dataset_name(dataset)} has no samples{f" with {filters}" if filters else ""}'
    )


def _check_categories(dataset: Any) -> None:
    ids, classes = getattr(dataset, 'cat_ids', None), class_names(dataset)
    if ids is None or not hasattr(dataset, 'COCOAPI') or classes is None:
        return
    # The classes that a dataset comes with fit its own files, which are large.
    own = getattr(type(dataset), 'METAINFO', {}).get('classes')
    if len(ids) == len(classes) and list(classes) == list(own or ()):
        return
    annotations = mmengine.load(
        dataset.ann_file, file_format='json', backend_args=dataset.backend_args
    )
    repeated = [i for i, n in Counter(i['id'] for i in annotations['images']).items() if n > 1]
    if repeated:
        raise UserError(
            f'{dataset_name(dataset)}: several images have the same id, and mmdet would keep one '
            f'of each: {listing([str(i) for i in repeated])}'
        )
    names = {category['id']: category['name'] for category in annotations['categories']}
    missing = [name for name in classes if name not in names.values()]
    if missing:
        raise UserError(
            f'{dataset_name(dataset)}: {len(missing)} of its {len(classes)} classes are no '
            f'category of the annotation file: {listing(missing)}; the file has '
            f'{listing(names.values())}. Set metainfo=dict(classes=...) of the dataset'
        )
    found = [names[category] for category in ids]
    if found != list(classes):
        raise UserError(
            f'{dataset_name(dataset)}: mmdet numbers labels in the order of the annotation file, '
            f'{listing(found)}, and metainfo has the classes as {listing(classes)}. '
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
    classes = class_names(dataset)
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
            f'{", ".join(wrong)}, but {dataset_name(dataset)} has {len(classes)} classes: '
            f'{listing(classes)}'
        )


def check_labels(model: nn.Module, dataset: Any) -> None:
    """Stop where an annotation file of mmpretrain has a label beyond the classes.

    Such a label ends a run on the CPU with an index, and one on a GPU with a device-side assertion.

    Args:
        model: The model without wrappers, which knows the number of classes where the dataset
            does not.
        dataset: A dataset without a wrapper.

    Raises:
        UserError: If there is such a label; the message names the first image and its label.
    """
    # Folders number their labels themselves.
    if getattr(dataset, 'ann_file', ''):
        for message in wrong_labels(model, dataset):
            raise UserError(message)


def wrong_labels(model: nn.Module, dataset: Any) -> Iterator[str]:
    """Find labels of mmpretrain beyond the classes.

    Args:
        model: As :func:`check_labels` takes it.
        dataset: A dataset without a wrapper.

    Returns:
        One message an image.
    """
    # mmdet numbers labels itself, whatever the ids of an annotation file.
    if not hasattr(dataset, 'get_gt_labels'):
        return
    classes = class_names(dataset)
    counts: list[Any] = [head.num_classes for head in class_heads(model).values()]
    num_classes = len(classes) if classes is not None else min(counts, default=None)
    if num_classes is None:
        return
    for i in range(len(dataset)):
        wrong = [label for label in dataset.get_cat_ids(i) if not 0 <= label < num_classes]
        if wrong:
            yield (
                f'{dataset_name(dataset)}: {dataset.get_data_info(i)["img_path"]} has the label '
                f'{wrong[0]}, expected 0 to {num_classes - 1} for {num_classes} classes'
            )


def class_names(dataset: Any) -> Sequence[str] | None:
    """Names of a dataset's classes, ``None`` where it has none.

    Args:
        dataset: A dataset without a wrapper.

    Raises:
        UserError: If the classes are one string.
    """
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if isinstance(classes, str):
        raise UserError(
            f'{dataset_name(dataset)}: metainfo has classes={classes!r}, expected a sequence of '
            f'names; for one class write ({classes!r},) with the comma'
        )
    return classes


def dataset_name(dataset: Any) -> str:
    """What messages call a dataset: its type and where it lies.

    Args:
        dataset: A dataset without a wrapper.
    """
    prefixes = getattr(dataset, 'data_prefix', None) or {}
    where = (
        getattr(dataset, 'ann_file', None)
        or prefixes.get('img_path')
        or getattr(dataset, 'data_root', None)
    )
    return f'{type(dataset).__name__}{f" ({where})" if where else ""}'


def listing(names: Collection[str]) -> str:
    """The first names, and how many more there are.

    Args:
        names: The names.
    """
    rest = len(names) - LISTED_NAMES
    more = f' and {rest} more' if rest > 0 else ''
    return ', '.join(list(names)[:LISTED_NAMES]) + more
