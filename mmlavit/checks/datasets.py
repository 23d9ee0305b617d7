"""Whether datasets are usable and fit the model; what cannot be judged is left alone."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import mmengine
from mmengine.dataset import BaseDataset
from mmengine.utils import scandir
from PIL import Image
from torch import nn

__all__ = [
    'base_datasets',
    'class_heads',
    'class_names',
    'dataset_name',
    'empty_classes',
    'files_left_out',
    'listing',
    'wrong_categories',
    'wrong_heads',
    'wrong_instances',
    'wrong_labels',
    'wrong_order',
]

# Heads that tell the classes of a dataset apart, by where the toolboxes keep them. RPN heads, for
# one, do not.
CLASS_HEADS = re.compile(
    r'head(\.\d+)?|(.*\.)?(bbox_head|mask_head|decode_head|auxiliary_head)(\.\d+)?'
)


def base_datasets(dataset: Any) -> Iterator[Any]:
    """Unwrap guarded, repeated, concatenated and balanced datasets."""
    inner = [getattr(dataset, name) for name in ('dataset', '_dataset') if hasattr(dataset, name)]
    # a wrapper that looks up what it lacks in the one inside has both names: one leads to all
    inner = inner[:1] or list(getattr(dataset, 'datasets', None) or ())
    if dataset is None or isinstance(dataset, BaseDataset) or not inner:
        yield from () if dataset is None else (dataset,)
        return
    for wrapped in inner:
        yield from base_datasets(wrapped)


def wrong_categories(dataset: Any) -> Iterator[str]:
    """Compare the classes of a base dataset with the annotation file of mmdet.

    mmdet drops a class that a COCO annotation file lacks, and numbers the labels in the order of
    the file, whatever the order of the classes, by which results are named.
    """
    classes = class_names(dataset)
    if isinstance(classes, str):
        yield (
            f'{dataset_name(dataset)}: metainfo has classes={classes!r}, expected a sequence of '
            f'names; for one class write ({classes!r},) with the comma'
        )
        return
    if hasattr(dataset, '__len__') and not len(dataset):
        yield f'{dataset_name(dataset)} has no samples'
    ids = getattr(dataset, 'cat_ids', None)
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
        yield (
            f'{dataset_name(dataset)}: several images have the same id, and mmdet would keep one '
            f'of each: {listing(repeated)}'
        )
    names = {category['id']: category['name'] for category in annotations['categories']}
    missing = [name for name in classes if name not in names.values()]
    if missing:
        yield (
            f'{dataset_name(dataset)}: {len(missing)} of its {len(classes)} classes are no '
            f'category of the annotation file: {listing(missing)}; the file has '
            f'{listing(list(names.values()))}. Set metainfo=dict(classes=...) of the dataset'
        )
        return
    found = [names[category] for category in ids]
    if found != list(classes):
        yield (
            f'{dataset_name(dataset)}: the file has its categories in the order {listing(found)}, '
            f'by which mmdet numbers labels, and metainfo names them {listing(classes)}. Reorder '
            f'the categories of {dataset.ann_file} to {listing(classes)}'
        )


def wrong_order(dataset: Any, expected: Sequence[str] | None, whose: str) -> Iterator[str]:
    """Compare the classes of a base dataset with those that a model learns or has learned.

    The latter are in the order of the model's labels; ``whose`` says where they come from.
    """
    classes = class_names(dataset)
    if None in (classes, expected) or list(classes or ()) == list(expected or ()):
        return
    if sorted(classes or ()) == sorted(expected or ()):
        yield (
            f'{dataset_name(dataset)}: its classes are in the order {listing(classes or ())}, '
            f'those of {whose} {listing(expected or ())}: one label would mean two classes. Use '
            f'the order of {whose}, for the categories of annotation files as well'
        )


def class_heads(model: nn.Module) -> dict[str, nn.Module]:
    """Find the heads that tell the classes of a dataset apart, by name.

    Class-agnostic ones are left out, and models that read their classes from a text have none.
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


def wrong_heads(model: nn.Module, dataset: Any) -> Iterator[str]:
    """Find heads with another number of classes, or another label to ignore, than a dataset."""
    classes = class_names(dataset)
    if classes is None:
        return
    # A panoptic dataset has classes that its box and mask heads do not see.
    classes = dataset.metainfo.get('thing_classes', classes)
    heads = class_heads(model)
    wrong = [
        f'model.{name}.num_classes is {head.num_classes}'
        for name, head in heads.items()
        if head.num_classes != len(classes)
    ]
    if wrong:
        yield (
            f'{", ".join(wrong)}, but {dataset_name(dataset)} has {len(classes)} classes: '
            f'{listing(classes)}'
        )
    ignored = getattr(dataset, 'ignore_index', None)
    for name, head in heads.items():
        index: Any = getattr(head, 'ignore_index', ignored)
        if ignored is not None and index != ignored:
            yield (
                f'model.{name}.ignore_index is {index}, but {dataset_name(dataset)} has '
                f'ignore_index={ignored}; set both alike'
            )


def wrong_labels(model: nn.Module, dataset: Any) -> Iterator[str]:
    """Find labels beyond the classes in an annotation file of mmpretrain, one message an image.

    Such a label ends a run on the CPU with an index, and one on a GPU with a device-side assertion.
    Where the dataset does not know the number of classes, the heads do.
    """
    # mmdet numbers labels itself, and so do folders.
    if not _has_labels(dataset) or not getattr(dataset, 'ann_file', ''):
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


def wrong_instances(dataset: Any) -> Iterator[str]:
    """Find training data of mmdet in which no annotation counts, such as boxes from 0 to 1."""
    if not hasattr(dataset, 'get_data_info') or not len(dataset):
        return
    if 'instances' not in dataset.get_data_info(0):
        return
    listed = (i for n in range(len(dataset)) for i in dataset.get_data_info(n)['instances'])
    if all(instance.get('ignore_flag') for instance in listed):
        yield (
            f'{dataset_name(dataset)}: no image has an annotation that counts: all are crowds, or '
            'their boxes were dropped, which tools/check.py --data explains'
        )


def empty_classes(dataset: Any) -> list[str]:
    """Find classes of mmpretrain that no image belongs to."""
    classes = class_names(dataset)
    if classes is None or not _has_labels(dataset):
        return []
    found = {label for i in range(len(dataset)) for label in dataset.get_cat_ids(i)}
    return [name for label, name in enumerate(classes) if label not in found]


def files_left_out(dataset: Any) -> list[str]:
    """Find images beside those of a dataset that have another suffix than it looks for."""
    prefixes = getattr(dataset, 'data_prefix', None) or {}
    folder = prefixes.get('img_path')
    suffixes = getattr(dataset, 'img_suffix', None) or getattr(dataset, 'extensions', None)
    if getattr(dataset, 'ann_file', '') or not suffixes or not Path(folder or '.').is_dir():
        return []
    files = scandir(folder, tuple(Image.registered_extensions()), True, case_sensitive=False)
    # mmpretrain compares without the case, mmseg with it.
    lower = isinstance(suffixes, tuple)
    return sorted(
        file for file in files if not (file.lower() if lower else file).endswith(suffixes)
    )


def _has_labels(dataset: Any) -> bool:
    """Whether a base dataset of mmpretrain has labels: images to predict need none."""
    return hasattr(dataset, 'get_gt_labels') and getattr(dataset, 'with_label', True)


def class_names(dataset: Any) -> Sequence[str] | None:
    """Names of a base dataset's classes, ``None`` where it has none."""
    return (getattr(dataset, 'metainfo', None) or {}).get('classes')


def dataset_name(dataset: Any) -> str:
    """What messages call a base dataset: its type and where it lies."""
    prefixes = getattr(dataset, 'data_prefix', None) or {}
    where = (
        getattr(dataset, 'ann_file', None)
        or prefixes.get('img_path')
        or getattr(dataset, 'data_root', None)
    )
    return f'{type(dataset).__name__}{f" ({where})" if where else ""}'


def listing(names: Collection[Any], most: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(map(str, list(names)[:most])) + more
