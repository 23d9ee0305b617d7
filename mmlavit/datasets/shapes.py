"""Shapes: circles, squares and triangles in the layouts of ImageNet, COCO and ADE20K.

Nothing is downloaded: every image follows from a seed, its split and its index. ``write_shapes``
(on the command line ``python tools/dataset_converters/make_shapes.py``) writes::

    out/
      shapes.json                                the settings of this copy
      classification/{train,val}/{circle,square,triangle}/00000000.png
      coco/{train2017,val2017}/000000000001.png
      coco/annotations/instances_{train2017,val2017}.json
      ade20k/images/{training,validation}/ADE_{train,val}_00000001.png
      ade20k/annotations/{training,validation}/ADE_{train,val}_00000001.png

``classification`` holds one shape an image, for mmpretrain's ``CustomDataset``. ``coco`` and
``ade20k`` hold the same scenes of overlapping shapes, for mmdet's ``CocoDataset`` with
``metainfo=dict(classes=('circle', 'square', 'triangle'))`` and for mmseg's ``BaseSegDataset`` with
``img_suffix='.png'``, ``reduce_zero_label=False`` and the four classes ``background`` (0),
``circle``, ``square``, ``triangle``. mmseg's ``ADE20KDataset`` does not fit: it has 150 classes
and sets ``reduce_zero_label=True``, which would drop the background.
"""

from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mmengine
import numpy as np
from mmengine.utils import track_progress_rich

CORNERS = {'circle': 0, 'square': 4, 'triangle': 3}
CLASSES = tuple(CORNERS)
SEGMENTATION_CLASSES = ('background', *CLASSES)
SPLITS = ('train', 'val')
ADE20K_FOLDERS = {'train': 'training', 'val': 'validation'}

# A change of the drawing code that changes any byte of the output raises this number.
VERSION = 2
MANIFEST = 'shapes.json'

# Diameters of the circle that has the area of the shape, as fractions of the image side.
SAMPLE_DIAMETER = (0.35, 0.6)
SCENE_DIAMETER = (0.18, 0.44)
# How often a scene asks for 1, 2, 3, 4, 5 shapes.
SCENE_COUNTS = (0.15, 0.3, 0.3, 0.15, 0.1)
# The least visible part of a shape, as a share of the shape and as a share of the image.
MIN_VISIBLE_OF_SHAPE = 0.5
MIN_VISIBLE_OF_IMAGE = 0.0025
# Bright shapes on a dim background: with either one brighter, small models fail to learn in the
# few epochs of a quick start.
BACKGROUND_LEVELS = (20, 100)
MIN_SHAPE_BRIGHTNESS = 160
# The least RGB distance of a shape's colour from everything painted under and around it.
CONTRAST = 70


@dataclass(frozen=True)
class ShapesSpec:
    """The settings that decide every byte of a copy of Shapes.

    Args:
        seed: Seed of all images, at least 0.
        num_classification: Images in the training and validation split, at least one a class.
        num_scenes: Scenes in the training and validation split, at least one.
        classification_size: Side of the classification images in pixels, at least 32.
        scene_size: Side of the scenes in pixels, at least 32.

    Raises:
        ValueError: If a value is out of range.
    """

    seed: int = 0
    num_classification: tuple[int, int] = (1200, 300)
    num_scenes: tuple[int, int] = (400, 60)
    classification_size: int = 96
    scene_size: int = 160

    def __post_init__(self) -> None:
        least = dict(seed=0, num_scenes=1, classification_size=32, scene_size=32)
        for name, minimum in dict(num_classification=len(CLASSES), **least).items():
            for value in np.atleast_1d(getattr(self, name)):
                if value < minimum:
                    raise ValueError(f'{name} must be at least {minimum}, found {value}')


class Scene(NamedTuple):
    """One drawn image with its annotation."""

    image: np.ndarray  # BGR, uint8, (H, W, 3)
    # the shape that is visible in each pixel, uint8, (H, W): 0 is background, i + 1 is labels[i]
    instances: np.ndarray
    labels: tuple[int, ...]  # index into CLASSES of each shape, from the lowest to the topmost

    @property
    def segmentation(self) -> np.ndarray:
        """Class of each pixel, an index into ``SEGMENTATION_CLASSES``, uint8, shape (H, W)."""
        return np.array([0, *(label + 1 for label in self.labels)], np.uint8)[self.instances]


class _Canvas:
    """A textured image that shapes are painted on, one above the other."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng = rng
        self.size = size
        self.pixels = rng.integers(*BACKGROUND_LEVELS, 3) + self._texture(0.35)  # (H, W, 3)
        self.instances = np.zeros((size, size), np.uint8)
        self.areas: list[int] = []
        self.labels: list[int] = []

    def _texture(self, strength: float) -> np.ndarray:
        """A smooth field around 0 of noise at three scales, shape (H, W, 3)."""
        field = np.zeros((self.size, self.size, 3))
        for cells, share in ((2, 0.3), (5, 0.5), (14, 0.2)):
            noise = self.rng.integers(0, 256, (cells, cells, 3), np.uint8)
            # The exact variant gives the same bytes on every processor.
            noise = cv2.resize(noise, (self.size, self.size), interpolation=cv2.INTER_LINEAR_EXACT)
            field += (noise - 127.5) * (strength * share)
        return field

    def _mask(self, label: int, diameters: tuple[float, float]) -> np.ndarray:
        """A shape of random size, place and rotation inside the image, uint8, shape (H, W)."""
        corners = CORNERS[CLASSES[label]]
        radius = self.rng.uniform(*diameters) * self.size / 2
        if corners:
            radius *= np.sqrt(2 * np.pi / (corners * np.sin(2 * np.pi / corners)))
        radius = round(radius)
        centre = self.rng.integers(radius, self.size - radius, 2)
        angle = self.rng.uniform(0, 2 * np.pi)
        mask = np.zeros((self.size, self.size), np.uint8)
        if corners:
            turns = angle + np.arange(corners) * (2 * np.pi / corners)
            vertices = centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
            cv2.fillPoly(mask, [np.rint(vertices).astype(np.int32)], 1)
        else:
            cv2.circle(mask, centre.tolist(), radius, 1, cv2.FILLED)
        return mask

    def _keeps_others_readable(self, mask: np.ndarray) -> bool:
        """Whether every earlier shape stays visible enough, and free of holes, under ``mask``."""
        for index in np.setdiff1d(self.instances[mask > 0], 0):
            visible = ((self.instances == index) & (mask == 0)).astype(np.uint8)
            area = visible.sum()
            least = MIN_VISIBLE_OF_SHAPE * self.areas[index - 1]
            if area < max(least, MIN_VISIBLE_OF_IMAGE * self.size**2):
                return False
            # COCO polygons cannot express a hole: an occluder must reach over the outline.
            outlines, _ = cv2.findContours(visible, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            if cv2.drawContours(visible, outlines, -1, 1, cv2.FILLED).sum() != area:
                return False
        return True

    def _contrasting_colour(self, mask: np.ndarray) -> np.ndarray:
        """A random colour that stands out from what ``mask`` will cover and touch, shape (3,)."""
        around = cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0
        avoid = self.pixels[around][::5]  # (P, 3)
        candidates = self.rng.integers(0, 256, (128, 3))
        candidates = candidates[candidates.mean(1) >= MIN_SHAPE_BRIGHTNESS]  # (K, 3)
        distance = np.sqrt(((candidates[:, None] - avoid) ** 2).sum(-1)).min(1)  # (K,)
        clear = np.flatnonzero(distance >= CONTRAST)
        return candidates[clear[0] if clear.size else distance.argmax()]

    def add(self, label: int, diameters: tuple[float, float]) -> None:
        """Paint a shape above all others, unless that would hide one of them too far."""
        mask = self._mask(label, diameters)
        if not self._keeps_others_readable(mask):
            return
        inside = mask > 0
        self.pixels[inside] = (self._contrasting_colour(mask) + self._texture(0.2))[inside]
        self.labels.append(label)
        self.areas.append(int(mask.sum()))
        self.instances[inside] = len(self.labels)

    def finish(self) -> Scene:
        grain = self.rng.integers(-4, 5, self.pixels.shape)
        image = np.clip(np.rint(self.pixels + grain), 0, 255).astype(np.uint8)
        return Scene(image, self.instances, tuple(self.labels))


def _rng(spec: ShapesSpec, task: int, split: str, index: int) -> np.random.Generator:
    # One stream an image: image k is the same however many are asked for.
    key = (task, SPLITS.index(split), index)
    return np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=key))


def draw_sample(spec: ShapesSpec, split: str, index: int) -> Scene:
    """Draw image ``index`` of a classification split: one shape, of class ``index % 3``."""
    canvas = _Canvas(_rng(spec, 0, split, index), spec.classification_size)
    canvas.add(index % len(CLASSES), SAMPLE_DIAMETER)
    return canvas.finish()


def draw_scene(spec: ShapesSpec, split: str, index: int) -> Scene:
    """Draw scene ``index`` of a split: 1 to 5 shapes, each with a readable part in sight."""
    rng = _rng(spec, 1, split, index)
    canvas = _Canvas(rng, spec.scene_size)
    count = 1 + rng.choice(len(SCENE_COUNTS), p=SCENE_COUNTS)
    for _ in range(10 * count):
        canvas.add(int(rng.integers(len(CLASSES))), SCENE_DIAMETER)
        if len(canvas.labels) == count:
            break
    return canvas.finish()


def visible_polygons(mask: np.ndarray) -> list[list[float]]:
    """Outline a mask without holes, ``(H, W)``, by COCO polygons, one for each connected part.

    The outlines, ``[x0, y0, x1, y1, ...]`` in pixels, run between the pixel centres and the pixel
    borders, so that pycocotools rasterises them to exactly the mask; outlines through the centres
    would lose border pixels.
    """
    doubled = (mask != 0).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    outlines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((outline.reshape(-1) + 0.5) / 2).tolist() for outline in outlines]


def _coco_annotations(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    masks = [(scene.instances == i).astype(np.uint8) for i, _ in enumerate(scene.labels, start=1)]
    return [
        dict(
            image_id=image_id,
            category_id=label + 1,
            bbox=list(cv2.boundingRect(mask)),
            area=int(mask.sum()),
            iscrowd=0,
            segmentation=visible_polygons(mask),
        )
        for label, mask in zip(scene.labels, masks, strict=True)
    ]


def _coco_file(scenes: list[list[dict[str, Any]]], size: int) -> dict[str, Any]:
    licence = dict(id=1, name='Apache-2.0', url='https://www.apache.org/licenses/LICENSE-2.0')
    return dict(
        info=dict(description='Shapes', version=str(VERSION)),
        licenses=[licence],
        images=[
            dict(id=k, file_name=f'{k:012d}.png', width=size, height=size, license=1)
            for k in range(1, len(scenes) + 1)
        ],
        annotations=[dict(id=k, **values) for k, values in enumerate(chain(*scenes), start=1)],
        categories=[dict(id=k, name=name) for k, name in enumerate(CLASSES, start=1)],
    )


def _write_png(path: Path, image: np.ndarray) -> None:
    _, data = cv2.imencode('.png', image)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unlike cv2.imwrite, this raises where the disk is full or the folder is read-only.
    path.write_bytes(data.tobytes())


def _write_sample(root: Path, spec: ShapesSpec, split: str, index: int) -> None:
    scene = draw_sample(spec, split, index)
    folder = root / 'classification' / split / CLASSES[scene.labels[0]]
    _write_png(folder / f'{index:08d}.png', scene.image)


def _write_scene(root: Path, spec: ShapesSpec, split: str, index: int) -> list[dict[str, Any]]:
    scene, number = draw_scene(spec, split, index), index + 1
    name = f'{ADE20K_FOLDERS[split]}/ADE_{split}_{number:08d}.png'
    _write_png(root / 'coco' / f'{split}2017' / f'{number:012d}.png', scene.image)
    _write_png(root / 'ade20k/images' / name, scene.image)
    _write_png(root / 'ade20k/annotations' / name, scene.segmentation)
    return _coco_annotations(scene, number)


def manifest(spec: ShapesSpec) -> dict[str, Any]:
    """What ``shapes.json`` holds: the settings, and the version of the drawing code."""
    return dict(dataset='shapes', version=VERSION, **asdict(spec))


def write_shapes(root: str | Path, spec: ShapesSpec | None = None) -> None:
    """Write Shapes in its three layouts to a new or empty folder, with a progress bar a split.

    The manifest is written last: a folder without ``shapes.json`` is not complete.

    Raises:
        FileExistsError: If ``root`` is a file or holds anything.
        OSError: If something cannot be written.
    """
    root, spec = Path(root), spec or ShapesSpec()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f'{root} must be a new or an empty folder, found other content')
    counts = zip(SPLITS, spec.num_classification, spec.num_scenes, strict=True)
    for split, samples, scenes in counts:
        track_progress_rich(
            partial(_write_sample, root, spec, split),
            range(samples),
            description=f'classification, {split}',
        )
        annotations = track_progress_rich(
            partial(_write_scene, root, spec, split),
            range(scenes),
            description=f'coco and ade20k, {split}',
        )
        path = root / 'coco' / 'annotations' / f'instances_{split}2017.json'
        mmengine.dump(_coco_file(annotations, spec.scene_size), path)
    mmengine.dump(manifest(spec), root / MANIFEST, indent=2)
