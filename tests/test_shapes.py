"""Shapes: the same bytes from the same seed, exact annotations, loaded by upstream's datasets."""

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Run, load_tool
from mmdet.datasets import CocoDataset
from mmpretrain.datasets import CustomDataset
from mmseg.datasets import BaseSegDataset
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmlavit.datasets import shapes as shapes_module
from mmlavit.datasets.shapes import (
    CLASSES,
    SEGMENTATION_CLASSES,
    ShapesSpec,
    draw_sample,
    draw_scene,
    visible_polygons,
    write_shapes,
)

TOOL = load_tool('make_shapes')
TINY = ShapesSpec(num_classification=(6, 3), num_scenes=(4, 2))
SIZES = ('--num-classification', '6', '3', '--num-scenes', '4', '2')


def digests(root: Path) -> dict[str, str]:
    """Hash of every file below ``root`` by its relative path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_shapes(root, TINY)
    return root


def test_bytes_follow_from_seed_and_index(root, tmp_path):
    """Another seed changes every file; a larger copy repeats the images of a smaller one."""
    write_shapes(tmp_path / 'other', replace(TINY, seed=1))
    write_shapes(tmp_path / 'more', replace(TINY, num_classification=(9, 6), num_scenes=(5, 3)))
    expected, other, more = map(digests, (root, tmp_path / 'other', tmp_path / 'more'))
    assert other.keys() == expected.keys()
    assert not set(other.values()) & set(expected.values())
    images = {name for name in expected if name.endswith('.png')}
    assert {name: more[name] for name in images} == {name: expected[name] for name in images}
    drawn = [expected[name] for name in images if name.startswith(('classification', 'coco'))]
    assert len(set(drawn)) == len(drawn) == 6 + 3 + 4 + 2


def test_pixels_are_those_of_published_figures():
    """Who changes them raises the version, and repeats what was measured on them."""
    pixels = hashlib.sha256()
    for draw in (draw_sample, draw_scene):
        for index in range(5):
            scene = draw(ShapesSpec(), 'val', index)
            pixels.update(scene.image.tobytes() + scene.instances.tobytes())
    assert pixels.hexdigest() == 'd758dd5083aabf13081530b2b645f59e015deba5efd9a3b7cd7e206f0d9d6a76'


def is_exact(polygons: list[list[float]], mask: np.ndarray) -> bool:
    """Whether pycocotools rasterises the polygons to just the mask."""
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape))
    return np.array_equal(coco_mask.decode(rle), mask)


def test_every_shape_stays_readable():
    """Enough of each is in sight, without a hole, which polygons cannot express; some overlap."""
    counts, overlapping, most_parts = set(), 0, 0
    # the last three have a first draw that puts a shape within the outline of a lower one
    for index in (*range(40), 105, 294, 295):
        scene = draw_scene(ShapesSpec(), 'train', index)
        counts.add(len(scene.labels))
        touching = False
        for number in range(1, len(scene.labels) + 1):
            mask = (scene.instances == number).astype(np.uint8)
            assert mask.sum() >= 64
            polygons = visible_polygons(mask)
            assert is_exact(polygons, mask)
            # outlines have no bias to a side: flipped ones are those of the flipped mask
            xy = [np.array(polygon).reshape(-1, 2) for polygon in polygons]
            flipped = [(p * (-1, 1) + (mask.shape[1], 0)).reshape(-1).tolist() for p in xy]
            assert is_exact(flipped, np.ascontiguousarray(mask[:, ::-1]))
            most_parts = max(most_parts, len(polygons))
            beside = cv2.dilate(mask, np.ones((3, 3))) > mask
            touching |= (scene.instances[beside] > number).any()
        overlapping += touching
    assert counts == {1, 2, 3, 4, 5}
    assert overlapping >= 14
    assert most_parts > 1


@pytest.mark.parametrize(('split', 'folder'), [('train', 'training'), ('val', 'validation')])
def test_toolboxes_load_what_was_drawn(root, split, folder):
    """Pixels, labels, masks, boxes and class maps; boxes and areas of COCO are the masks'."""
    load = dict(type='LoadImageFromFile')
    dataset = CustomDataset(
        data_root=str(root / 'classification'), data_prefix=split, pipeline=[load]
    )
    assert len(dataset) == {'train': 6, 'val': 3}[split]
    assert dataset.metainfo['classes'] == CLASSES
    for sample in dataset:
        scene = draw_sample(TINY, split, int(Path(sample['img_path']).stem))
        np.testing.assert_array_equal(sample['img'], scene.image)
        assert (sample['gt_label'],) == scene.labels

    annotations = f'annotations/instances_{split}2017.json'
    detection = CocoDataset(
        data_root=str(root / 'coco'),
        ann_file=annotations,
        data_prefix=dict(img=f'{split}2017'),
        metainfo=dict(classes=CLASSES),
        pipeline=[load, dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True)],
    )
    segmentation = BaseSegDataset(
        data_root=str(root / 'ade20k'),
        data_prefix=dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}'),
        img_suffix='.png',
        reduce_zero_label=False,
        metainfo=dict(classes=SEGMENTATION_CLASSES),
        pipeline=[load, dict(type='mmseg.LoadAnnotations')],
    )
    assert len(detection) == len(segmentation) == {'train': 4, 'val': 2}[split]
    for index, (objects, classes) in enumerate(zip(detection, segmentation, strict=True)):
        scene = draw_scene(TINY, split, index)
        np.testing.assert_array_equal(objects['img'], scene.image)
        np.testing.assert_array_equal(classes['img'], scene.image)
        np.testing.assert_array_equal(classes['gt_seg_map'], scene.segmentation)
        assert set(np.unique(scene.segmentation)) == {0, *(label + 1 for label in scene.labels)}
        assert tuple(objects['gt_bboxes_labels']) == scene.labels
        masks = objects['gt_masks']
        boxes = masks.get_bboxes('hbox').numpy()
        np.testing.assert_array_equal(objects['gt_bboxes'].numpy(), boxes)
        for number, mask in enumerate(masks.masks, start=1):
            np.testing.assert_array_equal(mask, scene.instances == number)
    coco = COCO(root / 'coco' / annotations)
    for annotation in coco.anns.values():
        assert annotation['area'] == coco.annToMask(annotation).sum()


def test_command_writes_once(root, empty_directory, run: Run, fails: Run):
    """Below the working directory; a second call touches nothing, other settings are refused."""
    argv = ('--out', 'data/shapes', *SIZES)
    assert '6 train + 3 val images of 96 x 96 pixels' in run(TOOL, *argv)
    before = {path: path.stat().st_mtime_ns for path in Path('data').rglob('*')}
    assert 'left in place' in run(TOOL, *argv)
    assert 'seed must be at least 0, found -1' in fails(TOOL, *argv, '--seed', '-1')
    message = fails(TOOL, *argv, '--seed', '1')
    assert f'{Path("data/shapes").resolve()} holds Shapes with seed 0, expected seed 1' in message
    assert {path: path.stat().st_mtime_ns for path in Path('data').rglob('*')} == before
    assert digests(Path('data')) == {f'shapes/{k}': v for k, v in digests(root).items()}


def test_other_content_is_left_alone(tmp_path, fails: Run):
    """A folder in use, and a file."""
    path = tmp_path / 'notes.txt'
    path.write_text('mine')
    for out in (tmp_path, path):
        assert f'{out} is there, and is no folder of Shapes' in fails(TOOL, '--out', str(out))
        with pytest.raises(FileExistsError, match='new or an empty folder'):
            write_shapes(out, TINY)
    assert digests(tmp_path).keys() == {'notes.txt'}


def test_interrupted_command_leaves_nothing(tmp_path, monkeypatch):
    """No half data set, and no temporary folder."""

    def interrupt(spec, split, index):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes_module, 'draw_scene', interrupt)
    with pytest.raises(KeyboardInterrupt):
        TOOL.main(['--out', str(tmp_path / 'shapes'), *SIZES])
    assert not list(tmp_path.iterdir())
