"""Turn BCCD, blood cells with boxes, from VOC's layout into COCO's, which the configs read.

SOURCE is a clone of https://github.com/Shenggan/BCCD_Dataset, or the folder ``BCCD`` in it.
Example::

    python tools/dataset_converters/bccd.py BCCD_Dataset --out data/bccd

writes ``data/bccd/{train,test}.json`` and the images in ``data/bccd/{train,test}``. Training takes
the splits train and val of the source. Boxes without width or height are left out.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mmengine

from mmlavit.cli.converters import existing, read_image, run_converter, subfolder
from mmlavit.errors import UserError

CLASSES = ('RBC', 'WBC', 'Platelets')
SPLITS = {'train': ('train', 'val'), 'test': ('test',)}
SIDES = ('xmin', 'ymin', 'xmax', 'ymax')


def read_boxes(path: Path, width: int, height: int) -> Iterator[tuple[int, list[float]]]:
    """The category and the four sides of each box of an annotation file.

    Raises:
        UserError: If the file is damaged, or a box is beyond the image or of another class.
    """
    try:
        objects = ElementTree.parse(existing(path)).findall('object')
    except ElementTree.ParseError as error:
        raise UserError(f'{path} is no XML: {error}') from error
    for number, element in enumerate(objects, start=1):
        place = f'{path}: object {number}'
        name = element.findtext('name')
        if name not in CLASSES:
            raise UserError(f'{place} is of the class {name!r}, expected {", ".join(CLASSES)}')
        texts = [element.findtext(f'bndbox/{side}', '') for side in SIDES]
        try:
            left, top, right, bottom = map(float, texts)
        except ValueError as error:
            text = f'expected numbers as {", ".join(SIDES)}'
            raise UserError(f'{place} has the box {texts}, {text}') from error
        if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
            raise UserError(f'{place} has the box {texts}, beyond the image of {width}x{height}')
        yield CLASSES.index(name) + 1, [left, top, right, bottom]


def convert_split(root: Path, split: str, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Copy the images of a split; return COCO's content, and the files with a box left out."""
    lists = [existing(root / 'ImageSets/Main' / f'{name}.txt') for name in SPLITS[split]]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    empty = []
    (out / split).mkdir()
    for name in ' '.join(path.read_text('utf-8') for path in lists).split():
        source, path = root / 'JPEGImages' / f'{name}.jpg', root / 'Annotations' / f'{name}.xml'
        width, height = read_image(source).size
        shutil.copyfile(source, out / split / source.name)
        images.append(dict(id=len(images) + 1, file_name=source.name, width=width, height=height))
        for category, (left, top, right, bottom) in read_boxes(path, width, height):
            # The tool that drew them wrote positions, not numbers of pixels: nothing to add.
            box = [left, top, right - left, bottom - top]
            # mmdet passes them by in training, and a test would count them as missed.
            if not box[2] * box[3]:
                empty.append(path.name)
                continue
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=len(images),
                    category_id=category,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
    categories = [dict(id=number, name=name) for number, name in enumerate(CLASSES, start=1)]
    return dict(images=images, annotations=annotations, categories=categories), empty


def write_bccd(source: Path, out: Path) -> str:
    """Write both splits, and say what they hold."""
    texts, left_out = [], []
    for split in SPLITS:
        content, empty = convert_split(subfolder(source, 'BCCD'), split, out)
        mmengine.dump(content, out / f'{split}.json')
        images, boxes = len(content['images']), len(content['annotations'])
        texts.append(f'{images} {split} images with {boxes} boxes')
        left_out += empty
    text = f'{", ".join(texts)}; {len(left_out)} empty boxes left out'
    return f'{text}: {", ".join(left_out)}' if left_out else text


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_converter(__doc__, 'bccd', write_bccd, argv)


if __name__ == '__main__':
    main()
