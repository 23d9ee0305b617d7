"""Shapes: the same bytes from the same seed, exact annotations, loaded by upstream's datasets."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmpretrain.datasets import CustomDataset
from mmseg.datasets import BaseSegDataset
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmlavit.datasets import (
    CLASSES,
    SEGMENTATION_CLASSES,
    ShapesSpec,
    draw_sample,
    draw_scene,
    visible_polygons,
    write_shapes,
)
from mmlavit.datasets import shapes as shapes_module

COMMAND = Path(__file__).parents[1] / 'tools' / 'make_shapes.py'
TINY = ShapesSpec(
    num_classification=(12, 6), num_scenes=(8, 4), classification_size=48, scene_size=96
)
TINY_ARGS = ['--num-classification', '12', '6', '--num-scenes', '8', '4']
TINY_ARGS += ['--classification-size', '48', '--scene-size', '96']
SPLITS = (('train', 'training', 8), ('val', 'validation', 4))


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


@pytest.fixture
def command(monkeypatch):
    """The command's ``main`` in this process, called with a list of arguments."""
    spec = importlib.util.spec_from_file_location('make_shapes', COMMAND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', [str(COMMAND), *map(str, args)])
        return module.main()

    return run


def test_same_seed_same_bytes_other_seed_other_bytes(root, tmp_path):
    """Every file repeats with the seed; no image and no annotation survives another seed."""
    write_shapes(tmp_path / 'same', TINY)
    write_shapes(tmp_path / 'other', replace(TINY, seed=1))
    expected, other = digests(root), digests(tmp_path / 'other')
    assert len(expected) == 12 + 6 + 3 * (8 + 4) + 2 + 1
    assert digests(tmp_path / 'same') == expected
    assert other.keys() == expected.keys()
    assert not set(other.values()) & set(expected.values())


def test_image_does_not_depend_on_the_counts(root, tmp_path):
    """A larger copy repeats every image of a smaller one; only JSON files and manifest differ."""
    write_shapes(tmp_path, replace(TINY, num_classification=(15, 9), num_scenes=(10, 5)))
    small, large = digests(root), digests(tmp_path)
    images = {name for name in small if name.endswith('.png')}
    assert {name: large[name] for name in images} == {name: small[name] for name in images}
    assert small['shapes.json'] != large['shapes.json']


def test_no_image_occurs_twice(root):
    """Train and val, and the images of one split, are all different."""
    files = digests(root)
    drawn = [
        h for name, h in files.items() if name.startswith(('classification', 'coco/t', 'coco/v'))
    ]
    assert len(drawn) == 12 + 6 + 8 + 4
    assert len(set(drawn)) == len(drawn)


def is_exact(polygons: list[list[float]], mask: np.ndarray) -> bool:
    """Whether pycocotools rasterises the polygons to just the mask."""
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape))
    return np.array_equal(coco_mask.decode(rle), mask)


def test_every_shape_stays_readable():
    """At the default size: enough of each shape in sight, and occlusion in a third of scenes."""
    counts, occluded = set(), 0
    for index in range(60):
        scene = draw_scene(ShapesSpec(), 'train', index)
        counts.add(len(scene.labels))
        touching = False
        for number in range(1, len(scene.labels) + 1):
            mask = (scene.instances == number).astype(np.uint8)
            assert mask.sum() >= 64
            assert is_exact(visible_polygons(mask), mask)
            beside = cv2.dilate(mask, np.ones((3, 3))) > mask
            touching |= (scene.instances[beside] > number).any()
        occluded += touching
    assert counts == {1, 2, 3, 4, 5}
    assert occluded >= 20


# Scenes whose first draw puts a shape within the outline of a lower one.
@pytest.mark.parametrize('index', [55, 105, 294, 295])
def test_no_shape_has_a_hole(index):
    """A hole, which COCO polygons cannot express, is redrawn."""
    scene = draw_scene(ShapesSpec(), 'train', index)
    for number in range(1, len(scene.labels) + 1):
        mask = (scene.instances == number).astype(np.uint8)
        assert is_exact(visible_polygons(mask), mask)


def test_polygons_of_a_split_shape_are_one_for_each_part():
    """A shape cut in two by an occluder becomes two polygons that cover exactly both parts."""
    mask = np.zeros((20, 30), np.uint8)
    mask[3:15, 2:28] = 1
    mask[:, 10:18] = 0
    polygons = visible_polygons(mask)
    assert len(polygons) == 2
    assert is_exact(polygons, mask)


def test_polygons_flip_with_the_mask():
    """Outlines have no bias to a side: flipped polygons rasterise to the flipped mask."""
    scene = draw_scene(ShapesSpec(), 'train', 4)
    for number in range(1, len(scene.labels) + 1):
        mask = (scene.instances == number).astype(np.uint8)
        polygons = [np.array(polygon).reshape(-1, 2) for polygon in visible_polygons(mask)]
        mirrored = [(mask.shape[1] - polygon[:, 0], polygon[:, 1]) for polygon in polygons]
        flipped = [np.stack(xy, axis=1).reshape(-1).tolist() for xy in mirrored]
        assert is_exact(flipped, np.ascontiguousarray(mask[:, ::-1]))


@pytest.mark.parametrize(('split', 'folder', 'num_scenes'), SPLITS)
def test_coco_and_ade20k_agree(root, split, folder, num_scenes):
    """Both layouts hold the same pixels; boxes, areas, polygons and classes match the masks."""
    coco = COCO(root / f'coco/annotations/instances_{split}2017.json')
    assert set(coco.dataset) == {'info', 'licenses', 'images', 'annotations', 'categories'}
    assert [(cat['id'], cat['name']) for cat in coco.dataset['categories']] == [
        (1, 'circle'),
        (2, 'square'),
        (3, 'triangle'),
    ]
    assert len(coco.imgs) == num_scenes
    for number, info in coco.imgs.items():
        name = f'ADE_{split}_{number:08d}.png'
        image = root / f'coco/{split}2017' / info['file_name']
        assert image.read_bytes() == (root / 'ade20k/images' / folder / name).read_bytes()
        expected = cv2.imread(
            str(root / 'ade20k/annotations' / folder / name), cv2.IMREAD_UNCHANGED
        )
        assert expected.dtype == np.uint8
        assert expected.shape == (info['height'], info['width']) == (96, 96)
        segmentation = np.zeros_like(expected)
        for annotation in coco.imgToAnns[number]:
            mask = coco.annToMask(annotation)
            assert annotation['area'] == mask.sum()
            assert annotation['bbox'] == list(cv2.boundingRect(mask))
            assert annotation['iscrowd'] == 0
            assert not segmentation[mask > 0].any()
            segmentation[mask > 0] = annotation['category_id']
        np.testing.assert_array_equal(segmentation, expected)


@pytest.mark.parametrize(('split', 'length'), [('train', 12), ('val', 6)])
def test_mmpretrain_loads_classification(root, split, length):
    """``CustomDataset`` finds the classes by folder and reads back the drawn pixels."""
    dataset = CustomDataset(
        data_root=str(root / 'classification'),
        data_prefix=split,
        pipeline=[dict(type='LoadImageFromFile')],
    )
    assert len(dataset) == length
    assert dataset.metainfo['classes'] == CLASSES
    assert sorted(dataset.get_gt_labels()) == sorted(list(range(3)) * (length // 3))
    for sample in dataset:
        scene = draw_sample(TINY, split, int(Path(sample['img_path']).stem))
        np.testing.assert_array_equal(sample['img'], scene.image)
        assert (sample['gt_label'],) == scene.labels


@pytest.mark.parametrize(('split', 'length'), [('train', 8), ('val', 4)])
def test_mmdet_loads_detection(root, split, length):
    """``CocoDataset`` reads back the drawn instance masks, their boxes and their labels."""
    dataset = CocoDataset(
        data_root=str(root / 'coco'),
        ann_file=f'annotations/instances_{split}2017.json',
        data_prefix=dict(img=f'{split}2017'),
        metainfo=dict(classes=CLASSES),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )
    assert len(dataset) == length
    for index, sample in enumerate(dataset):
        scene = draw_scene(TINY, split, index)
        np.testing.assert_array_equal(sample['img'], scene.image)
        assert tuple(sample['gt_bboxes_labels']) == scene.labels
        for number, mask in enumerate(sample['gt_masks'].masks, start=1):
            np.testing.assert_array_equal(mask, scene.instances == number)
        np.testing.assert_array_equal(
            sample['gt_bboxes'].numpy(), sample['gt_masks'].get_bboxes('hbox').numpy()
        )


@pytest.mark.parametrize(('split', 'folder', 'length'), SPLITS)
def test_mmseg_loads_segmentation(root, split, folder, length):
    """``BaseSegDataset`` reads back the drawn class map, background 0 included."""
    dataset = BaseSegDataset(
        data_root=str(root / 'ade20k'),
        data_prefix=dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}'),
        img_suffix='.png',
        reduce_zero_label=False,
        metainfo=dict(classes=SEGMENTATION_CLASSES),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')],
    )
    assert len(dataset) == length
    seen = set()
    for index, sample in enumerate(dataset):
        scene = draw_scene(TINY, split, index)
        np.testing.assert_array_equal(sample['img'], scene.image)
        np.testing.assert_array_equal(sample['gt_seg_map'], scene.segmentation)
        assert set(np.unique(scene.segmentation)) == {0, *(label + 1 for label in scene.labels)}
        seen |= set(np.unique(sample['gt_seg_map']))
    assert seen == {0, 1, 2, 3}


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
    """A setting out of range is refused with its name, its value and the bound."""
    with pytest.raises(ValueError, match=message):
        ShapesSpec(**values)


def test_write_shapes_refuses_a_folder_in_use(tmp_path):
    """The library function never adds to a folder that holds something."""
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='new or an empty folder'):
        write_shapes(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


def test_command_from_another_directory(root, tmp_path):
    """A relative --out lies below the working directory and holds the library's bytes."""
    result = subprocess.run(
        [sys.executable, str(COMMAND), '--out', 'data/shapes', '--seed', '0', *TINY_ARGS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / 'data' / 'shapes') in result.stdout
    assert '12 train + 6 val images of 48 x 48 pixels' in result.stdout
    assert '8/8' in result.stdout  # the progress bar
    assert digests(tmp_path / 'data' / 'shapes') == digests(root)
    assert [path.name for path in (tmp_path / 'data').iterdir()] == ['shapes']


def test_command_leaves_the_same_data_in_place(command, tmp_path, capsys):
    """The second run of one command says so, succeeds and touches nothing."""
    out = tmp_path / 'shapes'
    out.mkdir()  # an empty folder is as good as none
    assert command('--out', out, *TINY_ARGS) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    capsys.readouterr()
    assert command('--out', out, *TINY_ARGS) == 0
    assert 'left in place' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before


def test_command_keeps_other_settings_until_told(command, tmp_path, capsys):
    """Another seed is refused with both seeds named; --overwrite replaces the folder."""
    out = tmp_path / 'shapes'
    assert command('--out', out, *TINY_ARGS) == 0
    before = digests(out)
    assert command('--out', out, '--seed', 1, *TINY_ARGS) == 1
    message = capsys.readouterr().err
    assert str(out) in message
    assert 'seed 0, expected seed 1' in message
    assert '--overwrite' in message
    assert digests(out) == before
    assert command('--out', out, '--seed', 1, '--overwrite', *TINY_ARGS) == 0
    assert json.loads((out / 'shapes.json').read_text())['seed'] == 1
    assert not set(digests(out).values()) & set(before.values())
    assert [path.name for path in tmp_path.iterdir()] == ['shapes']


@pytest.mark.parametrize('flags', [[], ['--overwrite']])
@pytest.mark.parametrize('shapes_too', [False, True])
def test_command_never_removes_other_content(command, tmp_path, capsys, flags, shapes_too):
    """A file that Shapes did not write survives, with --overwrite too, and is named."""
    out = tmp_path / 'shapes'
    if shapes_too:
        write_shapes(out, replace(TINY, seed=3))
    out.mkdir(exist_ok=True)
    (out / 'notes.txt').write_text('mine')
    before = digests(out)
    assert command('--out', out, *flags, *TINY_ARGS) == 1
    message = capsys.readouterr().err
    assert str(out) in message
    assert 'notes.txt' in message
    assert digests(out) == before


def test_command_refuses_a_file(command, tmp_path, capsys):
    """A file in the place of the folder is named and kept."""
    out = tmp_path / 'shapes'
    out.write_text('mine')
    assert command('--out', out, *TINY_ARGS) == 1
    assert f'{out} is a file' in capsys.readouterr().err
    assert out.read_text() == 'mine'


@pytest.mark.parametrize('exists', [False, True])
def test_interrupted_command_leaves_things_as_they_were(
    command, tmp_path, capsys, monkeypatch, exists
):
    """No half data set and no temporary folder stays; an earlier data set stays whole."""
    out = tmp_path / 'shapes'
    if exists:
        write_shapes(out, replace(TINY, seed=3))
    before = digests(tmp_path)
    write_scene = shapes_module._write_scene

    def interrupt(root, spec, split, index):
        if index == 3:
            raise KeyboardInterrupt
        return write_scene(root, spec, split, index)

    monkeypatch.setattr(shapes_module, '_write_scene', interrupt)
    assert command('--out', out, '--overwrite', *TINY_ARGS) == 130
    assert 'interrupted' in capsys.readouterr().err
    assert digests(tmp_path) == before
    assert out.exists() == exists
    assert len(list(tmp_path.iterdir())) == int(exists)
