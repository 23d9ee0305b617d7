"""Public downloads become what the configs read: small sources, laid out as those are."""

import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, Run, load_tool
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmpretrain.datasets import CIFAR10, CustomDataset
from mmseg.datasets import BaseSegDataset
from PIL import Image

from mmlavit.checks.coco import coco_findings

LOAD = dict(type='LoadImageFromFile')
FOLDER = 'cifar-10-batches-py'
BOXES = {
    'BloodImage_00000': [('Platelets', 600, 0, 640, 30)],
    'BloodImage_00001': [('WBC', 1, 2, 31, 52), ('RBC', 181, 329, 181, 329), ('RBC', 5, 6, 7, 8)],
    'BloodImage_00002': [('RBC', 400, 400, 640, 480), ('WBC', 20, 20, 60, 70)],
}
# The colours of CamVid's label_colors.txt, by the class that they count for, and at last for none.
CAMVID = (
    {'Sky': (128, 128, 128)},
    {'Archway': (192, 0, 128), 'Bridge': (0, 128, 64), 'Building': (128, 0, 0)}
    | {'Tunnel': (64, 0, 64), 'Wall': (64, 192, 0)},
    {'Column_Pole': (192, 192, 128), 'TrafficCone': (0, 0, 64)},
    {'LaneMkgsDriv': (128, 0, 192), 'LaneMkgsNonDriv': (192, 0, 64), 'Road': (128, 64, 128)},
    {'ParkingBlock': (64, 192, 128), 'RoadShoulder': (128, 128, 192), 'Sidewalk': (0, 0, 192)},
    {'Tree': (128, 128, 0), 'VegetationMisc': (192, 192, 0)},
    {'Misc_Text': (128, 128, 64), 'SignSymbol': (192, 128, 128), 'TrafficLight': (0, 64, 64)},
    {'Fence': (64, 64, 128)},
    {'Car': (64, 0, 128), 'OtherMoving': (128, 64, 64), 'SUVPickupTruck': (64, 128, 192)}
    | {'Train': (192, 64, 128), 'Truck_Bus': (192, 128, 192)},
    {'Animal': (64, 128, 64), 'CartLuggagePram': (64, 0, 192), 'Child': (192, 128, 64)}
    | {'Pedestrian': (64, 64, 0)},
    {'Bicyclist': (0, 128, 192), 'MotorcycleScooter': (192, 0, 192)},
    {'Void': (0, 0, 0)},
)


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 did, as which CIFAR's files were written."""

    def save_bytes(self, content: bytes) -> None:
        """Write BINSTRING."""
        self.write(b'T' + len(content).to_bytes(4, 'little') + content)
        self.memoize(content)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}


def write_batch(path: Path, labels: list[int], rows: int | None = None) -> None:
    """A batch of random images."""
    size = (len(labels) if rows is None else rows, 3072)
    data = np.random.default_rng(len(labels)).integers(0, 256, size, np.uint8)
    with path.open('w+b') as stream:
        Python2Pickler(stream, protocol=2).dump({b'labels': labels, b'data': data})
        stream.seek(0)
        # numpy 2 has renamed the module
        content = stream.read().replace(b'numpy._core.', b'numpy.core.')
    path.write_bytes(content)


def write_cifar10(root: Path) -> Path:
    """Training batches with two images a class; the folder, beside which lies the archive."""
    (root / FOLDER).mkdir(parents=True)
    for number, labels in enumerate(([3, 9, 0], [1, 1], [2, 4, 5, 6], [8, 7], [0]), start=1):
        write_batch(root / FOLDER / f'data_batch_{number}', labels)
    write_batch(root / FOLDER / 'test_batch', [9, 4, 4, 0, 1, 2, 3, 5, 6, 7, 8])
    with tarfile.open(root / 'cifar-10-python.tar.gz', 'w:gz') as archive:
        archive.add(root / FOLDER, FOLDER)
    return root / FOLDER


def write_voc(path: Path, boxes: list[tuple]) -> None:
    """An annotation file of VOC."""
    text = '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin>'
    text += '<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
    path.write_text(f'<annotation>{"".join(text.format(*box) for box in boxes)}</annotation>')


def write_bccd(root: Path) -> Path:
    """A clone with one image in each of train, val and test."""
    source = root / 'BCCD'
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (source / folder).mkdir(parents=True)
    for (name, boxes), split in zip(BOXES.items(), ('val', 'train', 'test'), strict=True):
        (source / 'ImageSets/Main' / f'{split}.txt').write_text(f'{name}\n')
        write_voc(source / 'Annotations' / f'{name}.xml', boxes)
        Image.effect_noise((640, 480), 50).save(source / 'JPEGImages' / f'{name}.jpg')
    return root


def write_camvid(root: Path, suffix: str = 'annot', end: str = '', labels=range(12)) -> Path:
    """One orange image a split, whose mask has a stripe a label; colours are of double size."""
    stripes = np.array(labels, np.uint8)
    scale = stripes.ndim
    mask = np.repeat(stripes, 480 * scale // len(stripes), axis=0)
    for split in ('train', 'val', 'test'):
        for folder in (split, f'{split}{suffix}'):
            (root / 'CamVid' / folder).mkdir(parents=True)
        image = Image.new('RGB', (480 * scale, 360 * scale), (250, 120, 10))
        image.save(root / 'CamVid' / split / f'{split}_1.png')
        rows = np.repeat(mask[None], 360 * scale, axis=0)
        Image.fromarray(rows).save(root / 'CamVid' / f'{split}{suffix}' / f'{split}_1{end}.png')
    return root


@pytest.mark.parametrize('name', [FOLDER, '', 'cifar-10-python.tar.gz'])
def test_cifar10_holds_what_mmpretrain_reads_from_the_download(tmp_path, run: Run, name):
    """Pixels and labels, from the folder, the one around it, and the archive."""

    class Small(CIFAR10):
        """Without the checksums."""

        train_list = [[f'data_batch_{number}', None] for number in range(1, 6)]
        test_list = [['test_batch', None]]

    write_cifar10(tmp_path / 'source')
    text = run(
        load_tool('cifar10'), str(tmp_path / 'source' / name), '--out', str(tmp_path / 'out')
    )
    assert '12 train + 11 test images' in text
    for split in ('train', 'test'):
        expected = Small(data_root=str(tmp_path / 'source'), split=split, download=False)
        found = CustomDataset(data_root=str(tmp_path / 'out'), data_prefix=split, pipeline=[LOAD])
        assert found.metainfo['classes'] == expected.metainfo['classes']
        assert len(found) == len(expected)
        for sample in found:
            original = expected[int(Path(sample['img_path']).stem)]
            assert sample['gt_label'] == original['gt_label']
            np.testing.assert_array_equal(sample['img'], original['img'][..., ::-1])


def test_bccd_keeps_every_box_that_is_one(tmp_path, run: Run):
    """Training has train, then val; an empty box is named, and our check finds nothing."""
    source = write_bccd(tmp_path / 'source')
    text = run(load_tool('bccd'), str(source), '--out', str(tmp_path / 'out'))
    assert '2 train images with 3 boxes, 1 test images with 2 boxes' in text
    assert '1 empty boxes left out: BloodImage_00001.xml' in text
    classes = Config.fromfile(ROOT / 'configs/_base_/datasets/bccd.py').metainfo.classes
    for split, numbers in (('train', '10'), ('test', '2')):
        found = CocoDataset(
            data_root=str(tmp_path / 'out'),
            ann_file=f'{split}.json',
            data_prefix=dict(img=f'{split}/'),
            metainfo=dict(classes=classes),
            pipeline=[LOAD, dict(type='mmdet.LoadAnnotations', with_bbox=True)],
        )
        assert [Path(sample['img_path']).stem[-1] for sample in found] == list(numbers)
        assert not list(coco_findings(found))
        for sample in found:
            name = Path(sample['img_path']).stem
            boxes = [box for box in BOXES[name] if box[1] < box[3]]
            original = cv2.imread(str(source / 'BCCD/JPEGImages' / f'{name}.jpg'))
            np.testing.assert_array_equal(sample['img'], original)
            assert [classes[label] for label in sample['gt_bboxes_labels']] == [b[0] for b in boxes]
            assert sample['gt_bboxes'].numpy().tolist() == [list(box[1:]) for box in boxes]


@pytest.mark.parametrize('end', ['', '_L', None])
def test_camvid_has_the_classes_of_the_config(tmp_path, run: Run, end):
    """From SegNet's labels (None), and from 32 colours of twice the size."""
    source, classes = tmp_path / 'source', [*range(11), 255]
    if end is None:
        write_camvid(source)
    else:
        groups = zip(classes, CAMVID, strict=True)
        colours = {colour: label for label, group in groups for colour in group.values()}
        write_camvid(source, '_labels', end, list(colours))
        classes = list(colours.values())
    text = run(load_tool('camvid'), str(source), '--out', str(tmp_path / 'out'))
    assert '1 train + 1 val + 1 test images' in text
    cfg = Config.fromfile(ROOT / 'configs/_base_/datasets/camvid.py')
    for split in ('train', 'val', 'test'):
        settings = cfg[f'{split}_dataloader'].dataset
        settings.update(
            data_root=str(tmp_path / 'out'), pipeline=[LOAD, dict(type='mmseg.LoadAnnotations')]
        )
        (sample,) = BaseSegDataset(**{k: v for k, v in settings.items() if k != 'type'})
        assert sample['img'].shape == (360, 480, 3)
        assert abs(sample['img'].astype(int) - (10, 120, 250)).max() < 4
        expected = np.repeat(np.array(classes), 480 // len(classes))
        np.testing.assert_array_equal(sample['gt_seg_map'], np.tile(expected, (360, 1)))
    main = zip(cfg.metainfo.palette, CAMVID[:-1], strict=True)
    assert all(tuple(colour) in group.values() for colour, group in main)


def rewrite(path: str, content: bytes | None) -> Callable[[Path], None]:
    """Put other content into a file of the source, or remove it."""
    return lambda root: (root / path).write_bytes(content) if content else (root / path).unlink()


def repaint(path: str, mode: str, size: tuple[int, int], colour: object) -> Callable[[Path], None]:
    """Put an image of one colour in place of another."""
    return lambda root: Image.new(mode, size, colour).save(root / path)


XML, LIST = 'BCCD/Annotations/BloodImage_00001.xml', 'BCCD/ImageSets/Main/val.txt'
JPEG = 'BCCD/JPEGImages/BloodImage_00002.jpg'
PNG, MASK = 'CamVid/val/val_1.png', 'CamVid/valannot/val_1.png'


@pytest.mark.parametrize(
    ('name', 'damage', 'message'),
    [
        ('cifar10', rewrite('test_batch', None), 'test_batch is missing'),
        ('cifar10', rewrite('test_batch', b'\x80\x02}'), 'test_batch is no batch of CIFAR-10'),
        ('cifar10', rewrite('test_batch', pickle.dumps(exec)), 'it holds builtins.exec'),
        ('cifar10', rewrite('test_batch', pickle.dumps({b'data': 1})), "KeyError: b'labels'"),
        ('cifar10', lambda root: write_batch(root / 'test_batch', [1], 2), 'and 1 labels, exp'),
        ('cifar10', lambda root: write_batch(root / 'test_batch', [10]), 'found the label 10,'),
        ('cifar10', lambda root: write_batch(root / 'test_batch', [-1]), 'found the label -1,'),
        ('bccd', rewrite(LIST, None), f'{LIST} is missing'),
        ('bccd', rewrite(XML, None), f'{XML} is missing'),
        ('bccd', rewrite(XML, b'<annotation>'), f'{XML} is no XML'),
        ('bccd', lambda root: write_voc(root / XML, [('cell', 1, 1, 2, 2)]), "the class 'cell',"),
        ('bccd', lambda root: write_voc(root / XML, [('RBC', 1, 1, 641, 2)]), 'of 640x480'),
        ('bccd', lambda root: write_voc(root / XML, [('RBC', 9, 1, 8, 2)]), 'of 640x480'),
        ('bccd', lambda root: write_voc(root / XML, [('RBC', 1, 1, '', 2)]), 'expected numbers'),
        ('bccd', rewrite(JPEG, b'GIF'), f'{JPEG} cannot be read as an image'),
        ('camvid', lambda root: (root / 'CamVid').rename(root / 'other'), 'train is missing'),
        ('camvid', lambda root: (root / MASK).parent.rename(root / 'x'), 'no folder valannot or'),
        ('camvid', rewrite(MASK, None), 'such as val_1'),
        ('camvid', rewrite(PNG, b'\x89PNG'), f'{PNG} cannot be read as an image'),
        ('camvid', repaint(MASK, 'L', (480, 360), 12), f'{MASK}: 172800 pixels have the label 12,'),
        ('camvid', repaint(MASK, 'RGB', (480, 360), (1, 2, 3)), 'have the colour #010203,'),
        ('camvid', repaint(MASK, 'L', (480, 361), 1), 'and its mask'),
        ('camvid', repaint(PNG, 'RGB', (360, 480), 0), f'{PNG} has (360, 480) pixels'),
    ],
)  # fmt: skip
def test_anything_else_is_refused(tmp_path, fails: Run, name, damage, message):
    """With a message that names the file, and nothing written."""
    root = globals()[f'write_{name}'](tmp_path / 'source')
    damage(root)
    assert message in fails(load_tool(name), str(root), '--out', str(tmp_path / 'new' / 'out'))
    assert not list((tmp_path / 'new').iterdir())


def test_other_files_are_no_archive_and_other_folders_are_left_alone(tmp_path, fails: Run):
    """A file that is no archive, one that lacks batches, and an output folder in use."""
    source = write_cifar10(tmp_path / 'source')
    (tmp_path / 'text.tar.gz').write_text('404')
    with tarfile.open(tmp_path / 'empty.tar', 'w'):
        pass
    for name in ('text.tar.gz', 'empty.tar'):
        message = fails(load_tool('cifar10'), str(tmp_path / name), '--out', str(tmp_path / 'out'))
        assert f'{name} is no archive of CIFAR-10' in message
    before = sorted(tmp_path.rglob('*'))
    message = fails(load_tool('cifar10'), str(source), '--out', str(source))
    assert f'{source} is there already' in message
    assert sorted(tmp_path.rglob('*')) == before
