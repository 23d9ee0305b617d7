"""tools/check.py finds what is wrong before training, all of it and without a traceback."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import BN, ROOT, SEG_BN, edit, forget_runs, load_tool
from PIL import Image

CHECK, TRAIN = load_tool('check'), load_tool('train')
MASKS = """
_base_ = 'det.py'
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
"""
FOLDERS = 'shapes/classification/train'
SEG_MASKS = 'shapes/ade20k/annotations/training'
TRAIN_FILE = 'shapes/coco/annotations/instances_train2017.json'
PAGE = (ROOT / 'docs/bad_input.md').read_text()


@pytest.fixture
def data(data):
    (data / 'det_masks.py').write_text(MASKS)
    return data


@pytest.fixture
def checked(data, capsys):
    """Run the tool, and return the texts of its lines by level."""

    def call(*argv):
        forget_runs()
        code = CHECK.main(argv)
        out, err = capsys.readouterr()
        assert 'Traceback' not in out + err
        *lines, last = out.splitlines()
        found = {level: [] for level in ('ok', 'warn', 'FAIL')}
        for line in lines:
            found[line[:4].strip()].append(line[6:])
        assert last == f'{len(found["FAIL"])} wrong, {len(found["warn"])} to look at'
        assert code == bool(found['FAIL'])
        return found

    return call


def images(folder):
    return sorted(path for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize(
    ('config', 'options', 'samples', 'batch'),
    [
        ('cls.py', BN, ('12', '6'), 3),
        ('det_masks.py', (), ('4', '2'), 2),
        ('seg.py', SEG_BN, ('4', '2'), 2),
    ],
)
def test_sound_config_passes(config, options, samples, batch, checked, data):
    """Nothing is wrong with Shapes, all splits are looked at, and nothing is written."""
    before = sorted(data.rglob('*'))
    found = checked(config, '--data', *options)
    assert not found['FAIL'] and not found['warn']
    for count in samples:
        assert any(line.endswith(f' {count} samples load') for line in found['ok'])
    assert re.search(rf'step on a batch of {batch}: loss \d\S*, \d+ MB of', found['ok'][-1])
    assert sorted(data.rglob('*')) == before


def test_step_is_the_first_of_the_run(checked, data):
    """Weights, batch and losses are those with which the run starts."""
    loss = float(re.search(r'loss (\S+),', checked('cls.py', *BN)['ok'][-1])[1])
    forget_runs()
    TRAIN.main(['cls.py', *BN])
    (log,) = (data / 'work_dirs/cls').rglob('vis_data/scalars.json')
    first = json.loads(log.read_text().splitlines()[0])
    assert first['loss'] == pytest.approx(loss, rel=1e-3)


def test_keys_and_paths_are_reported_as_a_whole(checked, data):
    """Whatever can be seen without building anything has its line."""
    (data / 'bad.py').write_text(
        "_base_ = 'cls.py'\n"
        'train_datalodaer = dict(batch_size=2)\n'
        "train_dataloader = dict(bach_size=1, dataset=dict(data_root='nowhere'))\n"
        'val_dataloader = dict(num_workers=0, persistent_workers=True)\n'
    )
    failures = checked('bad.py', '--work-dir', 'cls.py/run')['FAIL']
    parts = (
        "key 'train_datalodaer', which nothing reads; did you mean 'train_dataloader'?",
        "train_dataloader: no argument 'bach_size'; did you mean 'batch_size'?",
        'val_dataloader: persistent_workers=True beside num_workers=0',
        "data_root 'nowhere' does not exist",
        "work dir 'cls.py/run' cannot be written to",
    )
    for part, failure in zip(parts, failures, strict=True):
        assert part in failure


@pytest.mark.parametrize(
    ('line', 'level', 'message'),
    [
        ('train_cfg = dict(max_epoch=2)', 'FAIL', "unexpected keyword argument 'max_epoch'"),
        (
            'model = dict(head=dict(num_classes=4))',
            'FAIL',
            'model.head.num_classes is 4, but CustomDataset .* 3 classes',
        ),
        (
            "model = dict(head=dict(loss=dict(type='CrossEntropyLoss', loss_weight=float('nan'))))",
            'FAIL',
            'loss is nan, expected a finite number',
        ),
        (
            "optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone.layer1': dict(lr_mult="
            "0.1), 'absolute_pos_embed': dict(lr_mult=0.0)}))",
            'warn',
            'custom_keys that match no parameter: absolute_pos_embed$',
        ),
    ],
)
def test_what_a_run_builds_is_built(line, level, message, checked, data):
    """Model, loops, optimizers and losses, with Python's own words for what they refuse."""
    (data / 'bad.py').write_text(f"_base_ = 'cls.py'\n{line}\n")
    assert re.search(message, checked('bad.py', *BN)[level][0])


def test_checkpoints_are_compared_with_the_model(checked, data, checkpoint):
    """Files that cannot be read, that belong elsewhere, and that cannot be resumed from."""
    shutil.copy(checkpoint, data / 'weights.pth')
    (data / 'cut.pth').write_bytes((data / 'weights.pth').read_bytes()[:5000])
    state = torch.load(checkpoint)['state_dict']
    torch.save({'state_dict': {'a': torch.zeros(1)}}, data / 'other.pth')
    backbone = {key: value for key, value in state.items() if key.startswith('backbone.')}
    torch.save({'state_dict': backbone}, data / 'part.pth')
    assert "'cut.pth'" in checked('cls.py', *BN, 'load_from=cut.pth')['FAIL'][0]
    (failure,) = checked('cls.py', *BN, 'load_from=other.pth')['FAIL']
    assert failure.startswith('other.pth: no tensor fits this ImageClassifier: in the file: 1: a')
    found = checked('cls.py', *BN, 'load_from=part.pth')
    assert not found['FAIL'] and found['warn'][0].startswith('part.pth does not belong to this')
    assert 'cannot be resumed' in checked('cls.py', '--resume', 'weights.pth', *BN)['FAIL'][0]
    assert not checked('cls.py', *BN, 'load_from=weights.pth')['FAIL']


def test_images_of_a_folder(checked, data):
    """Unreadable files and empty classes fail; images that OpenCV converts are counted."""
    folders = [images(data / FOLDERS / name) for name in ('circle', 'square', 'triangle')]
    cut, empty, text, turned = folders[0]
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(turned).convert('RGB').save(turned, 'JPEG', exif=exif)
    cut.write_bytes(cut.read_bytes()[:200])
    empty.write_bytes(b'')
    text.write_text('no image')
    for path in folders[1]:
        path.unlink()
    grey, alpha, dark, cmyk = folders[2]
    colour = Image.open(grey).convert('RGB')
    colour.convert('L').save(grey)
    colour.convert('CMYK').save(cmyk, 'JPEG')
    colour.putalpha(9)
    colour.save(alpha)
    cv2.imwrite(str(dark), np.full((32, 32, 3), 3000, np.uint16))
    grey.with_name('left.avif').write_bytes(b'another')
    # The pipeline knows this format, and Pillow does not.
    unknown = images(data / 'shapes/classification/val')[0]
    unknown.write_bytes(cv2.imencode('.pam', np.zeros((32, 32, 3), np.uint8))[1].tobytes())

    found = checked('cls.py', '--data', *BN)
    assert found['FAIL'] == [
        'CustomDataset (shapes/classification/train): no image belongs to square',
        f'{cut.relative_to(data)}: image file is truncated',
        f'{empty.relative_to(data)}: the file is empty',
        f'{text.relative_to(data)}: not an image of a known format',
    ]
    warnings = dict(text.split(', in CustomDataset', 1) for text in found['warn'])
    kinds = {
        'grey images, read as three equal channels': grey,
        'images with transparency, which is dropped': alpha,
        'images of 16 bits a channel that are almost black in the upper 8, which are kept': dark,
        'CMYK images, converted to RGB': cmyk,
        'images that their EXIF orientation turns: annotations must be of the turned image': turned,
    }
    for kind, path in kinds.items():
        assert warnings.pop(kind).endswith(f' ({FOLDERS}): 1 ({path.relative_to(data)})')
        assert f'`{kind}`' in PAGE
    assert list(warnings) == ['images of another suffix, which are not used']


def test_what_mmdet_tolerates_is_a_warning(checked, data):
    """Such files train: exit code 0, and a line for each kind with the annotations."""

    def spoil(content):
        listed = content['annotations']
        for annotation in listed:  # as pandas writes them
            annotation.update(image_id=float(annotation['image_id']), id=float(annotation['id']))
            annotation['iscrowd'] = int(annotation['image_id'] == 4)
        listed[0]['bbox'] = [500, 500, 10, 10]
        listed[1]['bbox'][2] = 0
        listed[2]['segmentation'] = [[1, 1, 2, 2]]
        listed[4]['bbox'][0] = -8
        listed[5]['segmentation'].append([1, 1, 2, 2])
        listed.append({**listed[0], 'id': 1000, 'image_id': 777})
        listed.append(dict(id=1001, image_id=1, category_id=1, ignore=1))  # mmdet reads no more
        content['images'].append({**content['images'][0], 'id': 5, 'file_name': '5.png'})

    edit(data / TRAIN_FILE, spoil)
    shutil.copy(images(data / 'shapes/coco/train2017')[0], data / 'shapes/coco/train2017/5.png')
    found = checked('det_masks.py', '--data')
    assert not found['FAIL'] and 'first step' in found['ok'][-1]
    kinds = dict(text.split(f', in CocoDataset ({TRAIN_FILE}): 1 ') for text in found['warn'])
    assert set(kinds) == {
        'annotations of images that the file does not list, ignored',
        'annotations with polygons of less than three points, left out',
        'annotations without a polygon of three points or more, ignored in training',
        'boxes of no area or less than a pixel wide or high, dropped',
        'boxes outside the image, dropped',
        'boxes that reach beyond the image, which Resize cuts off',
        'images of crowds only, which are ignored',
        'images without annotations, all background',
    }
    assert '(annotation 5.0 of 000000000003.png: [-8, 35, 18, 21] in 64x64)' in kinds.values()
    assert all(f'`{kind}`' in PAGE for kind in kinds)


def test_what_is_wrong_in_a_coco_file(checked, data):
    """Ids, categories, sizes and missing images are reported together."""

    def spoil(content):
        content['annotations'][3]['category_id'] = 99
        content['annotations'][5]['segmentation'] = [1, 1, 9, 1, 9, 9]
        content['annotations'][7]['segmentation'] = dict(size=[10, 10], counts=[100])
        content['images'][0]['width'] = 99
        content['images'].append({**content['images'][0], 'id': 5, 'file_name': '5.png'})

    edit(data / TRAIN_FILE, spoil)
    found = checked('det_masks.py', '--data')['FAIL']
    for text in (
        'annotation 4 of 000000000002.png has the category_id 99, expected one of the categories',
        'annotation 8 of 000000000004.png: the mask has [10, 10] pixels (height, width), its image',
        'the image has 64x64 pixels (height x width), the annotation file says 64x99',
        'and a mask of its annotations 10x10',
        'shapes/coco/train2017/5.png: no such file',
        'segmentation is [1, 1, 9, 1, 9, 9], expected a list of polygons, each a list',
    ):
        assert [text in line for line in found].count(True) == 1, text
    edit(data / TRAIN_FILE, lambda content: content['images'].append(content['images'][0]))
    (failure,) = checked('det_masks.py')['FAIL']
    assert 'several images have the same id, and mmdet would keep one of each: 1' in failure


def test_run_length_masks_that_are_not_read(checked, data):
    """poly2mask=False ignores them: the file and the first batch both say so."""

    def spoil(content):
        for annotation in content['annotations']:
            annotation['segmentation'] = dict(size=[64, 64], counts=[0, 64 * 64])

    edit(data / TRAIN_FILE, spoil)
    (data / 'rle.py').write_text(MASKS.replace('with_mask=True', 'with_mask=True, poly2mask=False'))
    (failure,) = checked('rle.py', '--data')['FAIL']
    assert 'annotations have run-length masks, which LoadAnnotations(poly2mask=False)' in failure
    (failure,) = checked('rle.py')['FAIL']
    assert 'the pipeline ignores or drops them all' in failure and 'set poly2mask=True' in failure


@pytest.mark.parametrize(
    ('section', 'place', 'key', 'message'),
    [
        ('annotations', 2, 'image_id', 'annotations[2] with the id 3: image_id is nothing'),
        ('images', 1, 'width', 'images[1] with the id 2: width is nothing, expected int or float'),
        ('annotations', 2, 'bbox', 'annotation 3 of 000000000002.png: bbox is None, expected four'),
    ],
)
def test_entry_that_stops_mmdet_is_named(section, place, key, message, checked, data):
    """What mmdet raises while it builds the dataset names neither the file nor the entry."""
    edit(data / TRAIN_FILE, lambda content: content[section][place].pop(key))
    failures = checked('det_masks.py')['FAIL']
    assert any(text.startswith(f'{TRAIN_FILE}: {message}') for text in failures)


def test_files_of_other_formats_are_not_read_as_coco(checked, data):
    """What is wrong elsewhere is all that is said of a run with mmpretrain's JSON."""
    (data / 'shapes/classification/train.json').write_text('{}')
    changes = ('type=MultiLabelDataset', 'ann_file=train.json')
    options = (*BN, 'model.backbone.dept=18', *(f'train_dataloader.dataset.{c}' for c in changes))
    (failure,) = checked('cls.py', *options)['FAIL']
    assert "unexpected keyword argument 'dept'" in failure


def test_masks_of_images(checked, data):
    """Another size, values beyond the classes, unreadable and missing masks; absent classes."""
    masks = images(data / SEG_MASKS)
    cv2.imwrite(str(masks[0]), np.zeros((20, 20), np.uint8))
    cv2.imwrite(str(masks[1]), np.full((64, 64), 7, np.uint8))
    masks[2].write_bytes(masks[2].read_bytes()[:60])
    masks[3].unlink()
    found = checked('seg.py', '--data', *SEG_BN)['FAIL']
    name = f'{SEG_MASKS}/ADE_train_0000000'
    expected = [
        f'{name}1.png: the mask has 20x20 pixels (height x width), and its image '
        'shapes/ade20k/images/training/ADE_train_00000001.png 64x64',
        f'{name}2.png: the mask has the values 7, expected 0 to 3 for the 4 classes (background, '
        'circle, square, triangle) or what is ignored: 255',
        f'{name}3.png: image file is truncated',
        f'{name}4.png: no such file',
    ]
    assert set(expected) <= set(found)
    assert all(f'`{text}`' in PAGE for text in expected)
    name = 'BaseSegDataset (shapes/ade20k/images/training)'
    assert f'{name}: no mask holds the class square' in found


def test_labels_beyond_the_classes(checked, data):
    """Every image of an annotation file with a label beyond the classes is named."""
    listed = [path.relative_to(data / FOLDERS) for path in images(data / FOLDERS)]
    lines = [f'{path} {number}' for number, path in enumerate(listed[:5])]
    (data / 'shapes/classification/train.txt').write_text('\n'.join(lines))
    options = ('ann_file=train.txt', 'metainfo.classes="[circle,square,triangle]"')
    found = checked('cls.py', *BN, *(f'train_dataloader.dataset.{o}' for o in options))['FAIL']
    labels = [text.partition(' has the label ')[2] for text in found]
    assert labels == [f'{label}, expected 0 to 2 for 3 classes' for label in (3, 4)]
