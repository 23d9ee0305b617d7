"""What is wrong inside a COCO annotation file, most of which mmdet drops without a word."""

import reprlib
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

import mmengine
from mmengine.registry import DATASETS

from .datasets import listing

__all__ = ['Finding', 'coco_findings', 'unusable_entries']


# What mmdet and pycocotools look up in every entry, by section.
NEEDED: dict[str, dict[str, tuple[type, ...]]] = {
    'images': {
        'id': (int, float, str),
        'file_name': (str,),
        'width': (int, float),
        'height': (int, float),
    },
    # pandas writes whole numbers as 1.0, which equal 1 wherever they are looked up
    'annotations': {
        'id': (int, float, str),
        'image_id': (int, float, str),
        'category_id': (int, float, str),
    },
    'categories': {'id': (int, float, str), 'name': (str,)},
}


class Finding(NamedTuple):
    """One thing found in data.

    ``'FAIL'`` is what stops or spoils a run, ``'warn'`` what upstream drops, converts or tolerates;
    warnings of one ``kind`` are reported together.
    """

    level: Literal['FAIL', 'warn']
    text: str
    kind: str = ''


def coco_findings(dataset: Any) -> Iterator[Finding]:
    """Read the annotation file of a base dataset of mmdet as it is, in its order."""
    if not _reads_coco(type(dataset)) or not dataset.ann_file:
        return
    content = mmengine.load(dataset.ann_file, file_format='json', backend_args=dataset.backend_args)
    usable, findings = _sort_out(content, dataset.ann_file)
    yield from findings
    images = {image['id']: image for image in usable['images']}
    categories = {category['id']: category['name'] for category in usable['categories']}
    transforms = getattr(dataset.pipeline, 'transforms', ())
    with_mask = any(getattr(transform, 'with_mask', False) for transform in transforms)
    with_rle = all(getattr(transform, 'poly2mask', True) for transform in transforms)
    unread = 0
    crowds: dict[Any, list[bool]] = {}
    for annotation in usable['annotations']:
        image = images.get(annotation['image_id'])
        name = f'annotation {annotation["id"]}'
        if image is None:
            kind = 'annotations of images that the file does not list, ignored'
            yield Finding('warn', name, kind)
            continue
        name = f'{name} of {image["file_name"]}'
        crowds.setdefault(image['id'], []).append(bool(annotation.get('iscrowd')))
        if annotation['category_id'] not in categories:
            text = f'{dataset.ann_file}: {name} has the category_id {annotation["category_id"]}, '
            text += f'expected one of the categories of the file: {listing(categories)}'
            yield Finding('FAIL', text)
        box = _check_box(annotation, image)
        if box is not None:
            if box.level == 'warn':
                yield box._replace(text=f'{name}: {box.text}')
        elif with_mask:
            rle = isinstance(annotation.get('segmentation'), dict)
            unread += rle and not with_rle and not annotation.get('iscrowd')
            for mask in _check_mask(annotation, image):
                text = f'{dataset.ann_file}: {name}' if mask.level == 'FAIL' else name
                yield mask._replace(text=f'{text}{mask.text}')
    if unread:
        text = f'{dataset.ann_file}: {unread} annotations have run-length masks, which '
        text += 'LoadAnnotations(poly2mask=False) ignores; set poly2mask=True'
        yield Finding('FAIL', text)
    skipped = bool((dataset.filter_cfg or {}).get('filter_empty_gt')) and not dataset.test_mode
    for number, image in images.items():
        if number not in crowds:
            kind = 'images without annotations, ' + ('skipped' if skipped else 'all background')
            yield Finding('warn', image['file_name'], kind)
        elif all(crowds[number]):
            yield Finding('warn', image['file_name'], 'images of crowds only, which are ignored')


def unusable_entries(config: Any) -> Iterator[Finding]:
    """Find entries without ids, sizes, boxes and so on, which keep mmdet from building a dataset.

    Local JSON files of the config of a dataset, or of a wrapper around some, are read.
    """
    if not isinstance(config, dict):
        return
    path = Path(config.get('data_root') or '', config.get('ann_file') or '')
    kind = config.get('type')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    if _reads_coco(kind) and path.is_file():
        yield from _sort_out(mmengine.load(path), str(path))[1]
    for inner in (config.get('dataset'), *(config.get('datasets') or ())):
        yield from unusable_entries(inner)


def _reads_coco(kind: Any) -> bool:
    """Whether a class reads files as mmdet's CocoDataset does; LVIS and panoptic ones differ."""
    methods = [getattr(kind, name, None) for name in ('load_data_list', 'parse_data_info')]
    return {getattr(method, '__module__', '') for method in methods} == {'mmdet.datasets.coco'}


def _sort_out(content: Any, path: str) -> tuple[dict[str, list[dict[str, Any]]], list[Finding]]:
    """The entries of each section that lack nothing, and what keeps mmdet from using the others."""
    usable: dict[str, list[dict[str, Any]]] = {section: [] for section in NEEDED}
    findings = []
    for section, kept in usable.items():
        # Files of images to test on have no annotations.
        default: list[Any] | None = [] if section == 'annotations' else None
        entries = content.get(section, default) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            findings.append(Finding('FAIL', f'{path}: {section} is no list'))
            continue
        for place, entry in enumerate(entries):
            lacking = _lacks(entry, section)
            if lacking:
                number = entry.get('id') if isinstance(entry, dict) else None
                name = f'{section}[{place}]' + ('' if number is None else f' with the id {number}')
                findings.append(Finding('FAIL', f'{path}: {name}: {lacking}'))
            else:
                kept.append(entry)
    images = {image['id']: image for image in usable['images']}
    for annotation in usable['annotations']:
        image = images.get(annotation['image_id'])
        if image is None or annotation.get('ignore'):
            continue
        box = _check_box(annotation, image)
        if box is not None and box.level == 'FAIL':
            name = f'annotation {annotation["id"]} of {image["file_name"]}'
            findings.append(box._replace(text=f'{path}: {name}: {box.text}'))
    return usable, findings


def _lacks(entry: Any, section: str) -> str:
    """What an entry of a section lacks, empty if nothing."""
    if not isinstance(entry, dict):
        return f'found {entry!r}, expected a dictionary'
    for key, kinds in NEEDED[section].items():
        if not isinstance(entry.get(key), kinds):
            found = repr(entry[key]) if key in entry else 'nothing'
            expected = ' or '.join(kind.__name__ for kind in kinds)
            return f'{key} is {found}, expected {expected}'
    return ''


def _check_box(annotation: dict[str, Any], image: dict[str, Any]) -> Finding | None:
    box = annotation.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return Finding('FAIL', f'bbox is {box!r}, expected four numbers, x, y, width and height')
    x, y, width, height = box
    if not _is_finite(annotation.get('area')):
        return Finding('FAIL', f'area is {annotation.get("area")!r}, expected a number')
    if width < 1 or height < 1 or annotation['area'] <= 0:
        kind = 'boxes of no area or less than a pixel wide or high, dropped'
        return Finding('warn', f'{box}, area {annotation["area"]}', kind)
    right, bottom = min(x + width, image['width']), min(y + height, image['height'])
    size = f'{image["width"]}x{image["height"]}'
    if right <= max(x, 0) or bottom <= max(y, 0):
        return Finding('warn', f'{box} in {size}', 'boxes outside the image, dropped')
    # Files are often rounded by a pixel.
    beyond = max(-x, -y, x + width - image['width'], y + height - image['height'])
    if beyond > 1:
        kind = 'boxes that reach beyond the image, which Resize cuts off'
        return Finding('warn', f'{box} in {size}', kind)
    return None


def _check_mask(annotation: dict[str, Any], image: dict[str, Any]) -> Iterator[Finding]:
    mask = annotation.get('segmentation')
    if not mask and not annotation.get('ignore'):
        yield Finding('FAIL', ' has no segmentation, and the pipeline loads masks')
    elif isinstance(mask, list) and not all(isinstance(polygon, list) for polygon in mask):
        text = f': segmentation is {reprlib.repr(mask)}, expected a list of polygons, each a list'
        yield Finding('FAIL', text)
    elif isinstance(mask, list):
        bad = [polygon for polygon in mask if len(polygon) < 6 or len(polygon) % 2]
        kind = 'annotations with polygons of less than three points, left out'
        if len(bad) == len(mask):
            kind = 'annotations without a polygon of three points or more, ignored in training'
        if bad:
            yield Finding('warn', '', kind)
    elif isinstance(mask, dict):
        expected = [image['height'], image['width']]
        if list(mask.get('size') or expected) != expected:
            text = f': the mask has {mask["size"]} pixels (height, width), its image {expected}'
            yield Finding('FAIL', text)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)
