"""Shapes: the same bytes from the same seed, exact annotations, loaded by upstream's datasets."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, load_tool
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
TINY = ShapesSpec(
    num_classification=(12, 6), num_scenes=(8, 4), classification_size=48, scene_size=96
)
TINY_ARGS = ['--num-classification', '12', '6', '--num-scenes', '8', '4']
TINY_ARGS += ['--classification-size', '48', '--scene-size', '96']
SPLITS = (('train', 'training', 12, 8), ('val', 'validation', 6, 4))


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
    write_shapes(tmp_path / 'same', TINY)
    write_shapes(tmp_path / 'other', replace(TINY, seed=1))
    write_shapes(tmp_path / 'more', replace(TINY, num_classification=(15, 9), num_scenes=(10, 5)))
    expected, other, more = (
        digests(path) for path in (root, *map(tmp_path.joinpath, ('other', 'more')))
    )
    assert len(expected) == 12 + 6 + 3 * (8 + 4) + 2 + 1
    assert digests(tmp_path / 'same') == expected
    assert other.keys() == expected.keys()
    assert not set(other.values()) & set(expected.values())
    images = {name for name in expected if name.endswith('.png')}
    assert {name: more[name] for name in images} == {name: expected[name] for name in images}
    drawn = [expected[name] for name in images if name.startswith(('classification', 'coco'))]
    assert len(set(drawn)) == len(drawn) == 12 + 6 + 8 + 4


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


# the last four have a first draw that puts a shape within the outline of a lower one
@pytest.mark.parametrize('indices', [range(60), (105, 294, 295)])
def test_every_shape_stays_readable(indices):
    """Enough of each is in sight, without a hole, which polygons cannot express; some overlap."""
    counts, occluded = set(), 0
    for index in indices:
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
            beside = cv2.dilate(mask, np.ones((3, 3))) > mask
            touching |= (scene.instances[beside] > number).any()
        occluded += touching
    if len(indices) == 60:
        assert counts == {1, 2, 3, 4, 5}
        assert occluded >= 20


def test_polygons_of_a_split_shape_are_one_for_each_part():
    mask = np.zeros((20, 30), np.uint8)
    mask[3:15, 2:28] = 1
    mask[:, 10:18] = 0
    polygons = visible_polygons(mask)
    assert len(polygons) == 2
    assert is_exact(polygons, mask)


@pytest.mark.parametrize(('split', 'folder', 'samples', 'scenes'), SPLITS)
def test_toolboxes_load_what_was_drawn(root, split, folder, samples, scenes):
    """Pixels, labels, masks, boxes and class maps; boxes and areas of COCO are the masks'."""
    load = dict(type='LoadImageFromFile')
    dataset = CustomDataset(
        data_root=str(root / 'classification'), data_prefix=split, pipeline=[load]
    )
    assert len(dataset) == samples
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
    assert len(detection) == len(segmentation) == scenes
    for index, (objects, classes) in enumerate(zip(detection, segmentation, strict=True)):
        scene = draw_scene(TINY, split, index)
        np.testing.assert_array_equal(objects['img'], scene.image)
        np.testing.assert_array_equal(classes['img'], scene.image)
        np.testing.assert_array_equal(classes['gt_seg_map'], scene.segmentation)
        assert set(np.unique(scene.segmentation)) == {0, *(label + 1 for label in scene.labels)}
        assert tuple(objects['gt_bboxes_labels']) == scene.labels
        masks = objects['gt_masks']
        np.testing.assert_array_equal(
            objects['gt_bboxes'].numpy(), masks.get_bboxes('hbox').numpy()
        )
        for number, mask in enumerate(masks.masks, start=1):
            np.testing.assert_array_equal(mask, scene.instances == number)
    coco = COCO(root / 'coco' / annotations)
    for annotation in coco.anns.values():
        assert annotation['area'] == coco.annToMask(annotation).sum()


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (dict(seed=-1), 'seed must be at least 0, found -1'),
        (dict(num_classification=(12, 2)), 'num_classification must be at least 3, found 2'),
        (dict(num_scenes=(0, 4)), 'num_scenes must be at least 1, found 0'),
        (dict(scene_size=16), 'scene_size must be at least 32, found 16'),
    ],
)
def test_bad_setting_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        ShapesSpec(**values)


def test_write_shapes_refuses_a_folder_in_use(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='new or an empty folder'):
        write_shapes(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


def test_command_writes_once(root, tmp_path):
    """Below the working directory; a second call touches nothing."""
    command = [sys.executable, next((ROOT / 'tools').rglob('make_shapes.py')), *TINY_ARGS]
    command += ['--out', 'data/shapes']

    def call() -> str:
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert '12 train + 6 val images of 48 x 48 pixels' in call()
    out = tmp_path / 'data/shapes'
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    assert 'left in place' in call()
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before
    assert digests(tmp_path / 'data') == {f'shapes/{k}': v for k, v in digests(root).items()}


def test_command_keeps_other_settings_until_told(tmp_path, fails):
    """Another seed is refused with both seeds named; --overwrite replaces the folder."""
    out = tmp_path / 'shapes'
    write_shapes(out, TINY)
    before = digests(tmp_path)
    argv = ['--out', str(out), '--seed', '1', *TINY_ARGS]
    message = fails(TOOL, *argv)
    assert str(out) in message
    assert 'seed 0, expected seed 1' in message
    assert digests(tmp_path) == before
    TOOL.main([*argv, '--overwrite'])
    assert json.loads((out / 'shapes.json').read_text())['seed'] == 1
    assert not set(digests(tmp_path).values()) & set(before.values())


@pytest.mark.parametrize('flags', [[], ['--overwrite']])
@pytest.mark.parametrize('shapes_too', [False, True])
def test_command_never_removes_other_content(tmp_path, fails, flags, shapes_too):
    """A file that Shapes did not write survives, with --overwrite too, and is named."""
    out = tmp_path / 'shapes'
    if shapes_too:
        write_shapes(out, replace(TINY, seed=3))
    out.mkdir(exist_ok=True)
    (out / 'notes.txt').write_text('mine')
    before = digests(out)
    assert 'notes.txt' in fails(TOOL, '--out', str(out), *flags, *TINY_ARGS)
    message = fails(TOOL, '--out', str(out / 'notes.txt'), *flags, *TINY_ARGS)
    assert 'notes.txt is a file' in message
    assert digests(out) == before


@pytest.mark.parametrize('exists', [False, True])
def test_interrupted_command_leaves_things_as_they_were(tmp_path, monkeypatch, exists):
    """No half data set and no temporary folder stays; an earlier data set stays whole."""
    out = tmp_path / 'shapes'
    if exists:
        write_shapes(out, replace(TINY, seed=3))
    before = digests(tmp_path)

    def interrupt(spec, split, index):
        if index == 3:
            raise KeyboardInterrupt
        return draw_scene(spec, split, index)

    monkeypatch.setattr(shapes_module, 'draw_scene', interrupt)
    with pytest.raises(KeyboardInterrupt):
        TOOL.main(['--out', str(out), '--overwrite', *TINY_ARGS])
    assert digests(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ['shapes'] * exists
