"""tools/check.py finds what is wrong before training, all of it and without a traceback."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, forget_runs, load_tool
from PIL import Image, UnidentifiedImageError

CHECK = load_tool('check')
# mmengine's SyncBN does not run without a process group.
BN = ('--cfg-options', 'model.backbone.norm_cfg.type=BN')
SEG_BN = ('--cfg-options', 'model.decode_head.norm_cfg.type=BN')
NANO = str(ROOT / 'configs/shapes/lavit-nano_shapes-cls.py')
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
TRAIN = 'shapes/coco/annotations/instances_train2017.json'
DATASET = f'CocoDataset ({TRAIN})'
PAGE = (ROOT / 'docs/bad_input.md').read_text()


@pytest.fixture
def data(workspace, tmp_path, monkeypatch):
    """A copy of the workspace to spoil, in which the tools are started."""
    root = shutil.copytree(workspace, tmp_path / 'work')
    (root / 'det_masks.py').write_text(MASKS)
    monkeypatch.chdir(root)
    monkeypatch.setenv('LOCAL_RANK', '0')
    return root


@pytest.fixture
def checked(data, capsys):
    """Run the tool, and return its exit code and its lines."""

    def call(*argv):
        code = CHECK.main(argv)
        forget_runs()
        out, err = capsys.readouterr()
        assert 'Traceback' not in out + err
        lines = out.splitlines()
        levels = [line[:4].strip() for line in lines[:-1]]
        assert set(levels) <= {'ok', 'warn', 'FAIL'}
        failures, warnings = levels.count('FAIL'), levels.count('warn')
        assert lines[-1] == f'{failures} wrong, {warnings} to look at'
        assert code == (failures > 0)
        return lines[:-1]

    return call


def of(level, lines):
    """The texts of one level."""
    return [line[6:] for line in lines if line.startswith(f'{level:4}  ')]


def images(folder):
    return sorted(path for path in folder.rglob('*') if path.is_file())


def edit(path, change):
    """Change an annotation file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('config', 'options', 'samples'),
    [('cls.py', BN, (12, 6)), ('det_masks.py', (), (4, 2)), ('seg.py', SEG_BN, (4, 2))],
)
def test_sound_config_passes(config, options, samples, checked, data):
    """Nothing is wrong with Shapes, and nothing is written to the work dir."""
    lines = checked(config, '--data', *options)
    assert not of('FAIL', lines) and not of('warn', lines)
    for count in samples:
        assert any(line.endswith(f'all {count} samples load') for line in lines)
    assert re.search(
        r'step on a batch of \d: loss \d\S*, \d+ MB of (GPU )?memory at most', lines[-1]
    )
    assert not (data / 'work_dirs' / config[:-3]).exists()


def test_bad_config_is_reported_as_a_whole(checked, data):
    """Every misspelt or impossible value has its line, and so has what is not there."""
    (data / 'bad.py').write_text(
        f'_base_ = {NANO!r}\n'
        'train_datalodaer = dict(batch_size=2)\n'
        'model = dict(\n'
        "    backbone=dict(arch='huge', window_size=0, out_indices=(4,), windw_size=7),\n"
        '    head=dict(num_clases=3))\n'
        "train_dataloader = dict(dataset=dict(data_root='nowhere'))\n"
        "val_dataloader = dict(dataset=dict(data_root='shapes/classification'))\n"
        "test_dataloader = dict(dataset=dict(data_root='shapes/classification'))\n"
        "load_from = 'nothing.pth'\n"
    )
    lines = checked('bad.py', '--work-dir', 'cls.py/run')
    assert [text.replace(str(data), '.') for text in of('FAIL', lines)] == [
        "the config has the key 'train_datalodaer', which nothing reads; did you mean "
        "'train_dataloader'? A variable of your own needs a name less alike",
        "train_dataloader: data_root 'nowhere' does not exist, seen from .",
        "work dir 'cls.py/run' cannot be written to: ./cls.py: Not a directory",
        "model.backbone: LaViT: no argument 'windw_size'; did you mean 'window_size'?",
        "model.backbone: LaViT: arch='huge': expected one of ('nano', 'tiny', 'small', 'base') or "
        "a dict with the keys ('channels', 'depths', 'va_layers', 'head_width', 'ffn_ratio')",
        'model.backbone: LaViT: window_size=0: expected a positive integer or 4 of them',
        'model.backbone: LaViT: out_indices=(4,): expected rising stage numbers from 0 to 3, or '
        'from -4 to -1',
        "model.head: LinearClsHead: no argument 'num_clases'; did you mean 'num_classes'?",
        "checkpoint 'nothing.pth' does not exist",
    ]
    # the validation data is checked all the same
    assert 'val: CustomDataset (shapes/classification/val), 6 samples' in of('ok', lines)


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (
            'train_cfg.max_epoch=2',
            "Loop: no argument 'max_epoch'; did you mean 'max_epochs",
        ),
        ('optim_wrapper.optimizer.type=AdamV', "optimizer: type 'AdamV' .* did you mean 'Adam"),
        ('optim_wrapper.optimizer.rate=1', "optim_wrapper.optimizer: SGD: no argument 'rate'"),
        ('model.head.num_classes=4', 'model.head.num_classes is 4, but CustomDataset .* 3 classes'),
        ('optim_wrapper.optimizer.lr=1e30', None),
    ],
)
def test_what_a_run_builds_later_is_built(option, message, checked):
    """Loops and optimizers, which training builds after the model, and the heads' classes."""
    failures = of('FAIL', checked('cls.py', *BN, option))
    if message is None:
        assert not failures
    else:
        assert len(failures) >= 1 and re.search(message, failures[0])


def test_loss_that_is_not_finite_fails(checked, data):
    """One step is trained with the losses of the config."""
    (data / 'nan.py').write_text(
        "_base_ = 'cls.py'\nmodel = dict(head=dict(loss=dict(type='CrossEntropyLoss', "
        "loss_weight=float('nan'))))\n"
    )
    (failure,) = of('FAIL', checked('nan.py', *BN))
    assert failure == 'one step of training: loss is nan, expected a finite number'


@pytest.mark.parametrize('file', ['shapes/coco/val.json', TRAIN])
def test_file_that_the_evaluator_reads_is_checked(file, checked, data):
    """Before the first epoch ends, and also where the data to test on is known already."""
    (data / 'val.py').write_text(
        "_base_ = 'det.py'\nval_cfg = dict()\nval_dataloader = {{_base_.test_dataloader}}\n"
        'val_evaluator = {{_base_.test_evaluator}}\n'
    )
    (failure,) = of('FAIL', checked('val.py', '--cfg-options', f'test_evaluator.ann_file={file}'))
    failure = failure.replace(str(data), '.')
    assert failure.startswith('test_evaluator: ann_file') and f'`{failure}`' in PAGE


def test_checkpoints_are_compared_with_the_model(checked, data, checkpoint):
    """Files that cannot be read, that belong elsewhere, and that cannot be resumed from."""
    shutil.copy(checkpoint, data / 'weights.pth')
    (data / 'cut.pth').write_bytes((data / 'weights.pth').read_bytes()[:5000])
    state = torch.load(checkpoint)['state_dict']
    torch.save({'state_dict': {'a': torch.zeros(1)}}, data / 'other.pth')
    backbone = {key: value for key, value in state.items() if key.startswith('backbone.')}
    torch.save({'state_dict': backbone}, data / 'part.pth')

    (failure,) = of('FAIL', checked('cls.py', *BN, 'load_from=cut.pth'))
    assert failure == "checkpoint 'cut.pth' is damaged, or was not written by torch.save"
    assert f'`{failure}`' in PAGE
    (failure,) = of('FAIL', checked('cls.py', *BN, 'load_from=other.pth'))
    assert failure.startswith('other.pth: no tensor fits this ImageClassifier')
    lines = checked('cls.py', *BN, 'load_from=part.pth')
    assert not of('FAIL', lines)
    (warning,) = of('warn', lines)
    assert warning.startswith('part.pth does not belong to this ImageClassifier')
    (failure,) = of('FAIL', checked('cls.py', '--resume', 'weights.pth', *BN))
    assert failure.startswith("checkpoint 'weights.pth' cannot be resumed: it holds state_dict")
    state = dict(torch.load('other.pth'), meta=dict(iter=1, epoch=1), message_hub={})
    torch.save(state, data / 'other.pth')
    (failure,) = of('FAIL', checked('cls.py', '--resume', 'other.pth', *BN))
    assert failure.startswith('other.pth does not belong to this ImageClassifier')
    assert not of('FAIL', checked('cls.py', *BN, 'load_from=weights.pth'))
    (data / 'transfer.py').write_text(
        f'_base_ = {NANO!r}\nmodel = dict(backbone=dict(init_cfg=dict(type="Pretrained", '
        'checkpoint="weights.pth", prefix="backbone.")))\n'
        'train_dataloader = val_dataloader = test_dataloader = None\n'
    )
    failures = of('FAIL', checked('transfer.py'))
    assert any(text.startswith('weights.pth does not fit LaViT') for text in failures)


def test_images_of_a_folder(checked, data):
    """Unreadable files and empty classes fail; images that OpenCV converts are counted."""
    folders = [images(data / FOLDERS / name) for name in ('circle', 'square', 'triangle')]
    cut, empty, text = folders[0][:3]
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

    lines = checked('cls.py', '--data', *BN)
    failures = [
        'CustomDataset (shapes/classification/train): no image belongs to square',
        f'{cut.relative_to(data)}: image file is truncated',
        f'{empty.relative_to(data)}: the file is empty',
        f'{text.relative_to(data)}: not an image of a known format',
    ]
    assert of('FAIL', lines) == failures
    assert all(f'`{failure}`' in PAGE for failure in failures)
    warnings = dict(text.split(', in CustomDataset', 1) for text in of('warn', lines))
    kinds = {
        'grey images, read as three equal channels': grey,
        'images with transparency, which is dropped': alpha,
        'images of 16 bits a channel that are almost black in the upper 8, which are kept': dark,
        'CMYK images, converted to RGB': cmyk,
    }
    assert warnings.keys() == kinds.keys()
    for kind, path in kinds.items():
        where = path.relative_to(data)
        assert warnings[kind] == f' (shapes/classification/train): 1 ({where})'
        assert f'`{kind}`' in PAGE


def test_what_mmdet_tolerates_is_a_warning(checked, data):
    """Such files train: exit code 0, and a line for each kind with the annotations."""

    def spoil(content):
        listed = content['annotations']
        listed[0]['bbox'] = [500, 500, 10, 10]
        listed[1]['bbox'][2] = 0
        listed[2]['segmentation'] = [[1, 1, 2, 2]]
        listed[4]['bbox'][0] = -8
        listed[5]['segmentation'].append([1, 1, 2, 2])
        for annotation in listed:
            if annotation['image_id'] == 4:
                annotation['iscrowd'] = 1
        listed.append({**listed[0], 'id': 1000, 'image_id': 777})
        content['images'].append({**content['images'][0], 'id': 5, 'file_name': '5.png'})

    edit(data / TRAIN, spoil)
    shutil.copy(images(data / 'shapes/coco/train2017')[0], data / 'shapes/coco/train2017/5.png')
    lines = checked('det_masks.py', '--data')
    assert not of('FAIL', lines)
    assert 'forward, backward and optimizer step' in lines[-1]
    found = dict(text.split(f', in {DATASET}: 1 ') for text in of('warn', lines))
    assert found == {
        'annotations of images that the file does not list, ignored': '(annotation 1000)',
        'annotations with polygons of less than three points, left out': (
            '(annotation 6 of 000000000003.png)'
        ),
        'annotations without a polygon of three points or more, ignored in training': (
            '(annotation 3 of 000000000002.png)'
        ),
        'boxes of no area or less than a pixel wide or high, dropped': (
            '(annotation 2 of 000000000002.png: [9, 27, 0, 18], area 178)'
        ),
        'boxes outside the image, dropped': (
            '(annotation 1 of 000000000001.png: [500, 500, 10, 10] in 64x64)'
        ),
        'boxes that reach beyond the image, which Resize cuts off': (
            '(annotation 5 of 000000000003.png: [-8, 35, 18, 21] in 64x64)'
        ),
        'images of crowds only, which are ignored': '(000000000004.png)',
        'images without annotations, all background': '(5.png)',
    }
    assert all(f'`{kind}`' in PAGE for kind in found)


def test_what_is_wrong_in_a_coco_file(checked, data):
    """Ids, categories, sizes and missing images; what stops mmdet is reported with the rest."""

    def spoil(content):
        content['annotations'][3]['category_id'] = 99
        content['annotations'][7]['segmentation'] = dict(size=[10, 10], counts=[100])
        content['images'][0]['width'] = 99
        content['images'].append({**content['images'][0], 'id': 5, 'file_name': '5.png'})

    edit(data / TRAIN, spoil)
    found = of('FAIL', checked('det_masks.py', '--data'))
    expected = [
        f'{TRAIN}: annotation 4 of 000000000002.png has the category_id 99, expected one of the '
        'categories of the file: 1, 2, 3',
        f'{TRAIN}: annotation 8 of 000000000004.png: the mask has [10, 10] pixels (height, width), '
        'its image [64, 64]',
        'shapes/coco/train2017/000000000001.png: the image has 64x64 pixels (height x width), the '
        'annotation file says 64x99',
        'shapes/coco/train2017/000000000004.png: the image has 64x64 pixels (height x width), and '
        'a mask of its annotations 10x10',
        'shapes/coco/train2017/5.png: no such file',
    ]
    assert sorted(found) == sorted(expected)
    assert all(f'`{text}`' in PAGE for text in found)

    edit(data / TRAIN, lambda content: content['images'].append(content['images'][0]))
    found = of('FAIL', checked('det_masks.py', '--data'))
    assert (
        f'{TRAIN}: 2 images have the id 1' in found and f'`{TRAIN}: 2 images have the id 1`' in PAGE
    )
    assert (
        f'{DATASET}: several images have the same id, and mmdet would keep one of each: 1' in found
    )

    edit(data / TRAIN, lambda content: content['annotations'].append(content['annotations'][0]))
    failures = of('FAIL', checked('det_masks.py', '--data'))
    message = f"train_dataloader.dataset: CocoDataset: Annotation ids in '{TRAIN}' are not unique!"
    assert failures == [message] and f'`{message}`' in PAGE


def test_masks_of_images(checked, data):
    """Another size, values beyond the classes, unreadable and missing masks."""
    masks = images(data / SEG_MASKS)
    cv2.imwrite(str(masks[0]), np.zeros((20, 20), np.uint8))
    cv2.imwrite(str(masks[1]), np.full((64, 64), 7, np.uint8))
    masks[2].write_bytes(masks[2].read_bytes()[:60])
    masks[3].unlink()
    found = of('FAIL', checked('seg.py', '--data', *SEG_BN))
    name = f'{SEG_MASKS}/ADE_train_0000000'
    assert sorted(found) == [
        f'{name}1.png: the mask has 20x20 pixels (height x width), and its image '
        'shapes/ade20k/images/training/ADE_train_00000001.png 64x64',
        f'{name}2.png: the mask has the values 7, expected 0 to 3 for the 4 classes (background, '
        'circle, square, triangle) or what is ignored: 255',
        f'{name}3.png: image file is truncated',
        f'{name}4.png: no such file',
    ]
    assert all(f'`{text}`' in PAGE for text in found)


def test_labels_beyond_the_classes(checked, data):
    """Every image of an annotation file with a label beyond the classes is named."""
    listed = [path.relative_to(data / FOLDERS) for path in images(data / FOLDERS)]
    lines = [f'{path} {number}' for number, path in enumerate(listed[:5])]
    (data / 'shapes/classification/train.txt').write_text('\n'.join(lines))
    options = ('ann_file=train.txt', 'metainfo.classes="[circle,square,triangle]"')
    found = of(
        'FAIL',
        checked('cls.py', '--data', *BN, *(f'train_dataloader.dataset.{o}' for o in options)),
    )
    where = 'CustomDataset (shapes/classification/train.txt): shapes/classification/train'
    expected = [
        f'{where}/{listed[label]} has the label {label}, expected 0 to 2 for 3 classes'
        for label in (3, 4)
    ]
    assert found[:2] == expected and f'`{expected[0]}`' in PAGE


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (
            lambda content: content['annotations'][2].pop('id'),
            'annotations[2]: id is nothing, expected int or str',
        ),
        (
            lambda content: content['annotations'][2].pop('image_id'),
            'annotations[2] with the id 3: image_id is nothing, expected int or str',
        ),
        (
            lambda content: content['images'][1].pop('width'),
            'images[1] with the id 2: width is nothing, expected int or float',
        ),
        (
            lambda content: content['annotations'][2].pop('bbox'),
            'annotation 3 of 000000000002.png: bbox is None, expected four numbers, x, y, width '
            'and height',
        ),
        (
            lambda content: content['annotations'].append(7),
            'annotations[9]: found 7, expected a dictionary',
        ),
    ],
)
def test_entry_that_stops_mmdet_is_named(spoil, message, checked, data):
    """What mmdet raises while it builds the dataset names neither the file nor the entry."""
    edit(data / TRAIN, spoil)
    failures = of('FAIL', checked('det_masks.py'))
    assert f'{TRAIN}: {message}' in failures and f'`{TRAIN}: {message}`' in PAGE
    assert any(text.startswith('train_dataloader') for text in failures)


def test_polygon_without_a_list_around_it_is_named(checked, data):
    """A flat list of numbers, as some converters write it."""
    edit(
        data / TRAIN,
        lambda content: content['annotations'][0].update(segmentation=[1, 1, 9, 1, 9, 9]),
    )
    message = (
        f'{TRAIN}: annotation 1 of 000000000001.png: segmentation is [1, 1, 9, 1, 9, 9], expected '
        'a list of polygons, each a list'
    )
    assert message in of('FAIL', checked('det_masks.py', '--data')) and f'`{message}`' in PAGE


def test_images_that_pillow_does_not_know_are_no_failure(checked, data):
    """The pipeline may load what it likes."""
    path = images(data / FOLDERS / 'circle')[0]
    path.write_bytes(cv2.imencode('.pam', np.zeros((32, 32, 3), np.uint8))[1].tobytes())
    with pytest.raises(UnidentifiedImageError):
        Image.open(path)
    assert not of('FAIL', checked('cls.py', '--data', *BN))


def test_damaged_checkpoint_that_is_passed_over_is_a_warning(checked, data, checkpoint):
    """As the log of training has it."""
    weights = torch.load(checkpoint)['state_dict']
    for number in (1, 2):
        state = dict(meta=dict(epoch=number, iter=number), message_hub={}, optimizer={})
        (data / 'work_dirs/cls').mkdir(parents=True, exist_ok=True)
        torch.save(dict(state, state_dict=weights), data / f'work_dirs/cls/epoch_{number}.pth')
    newest = data / 'work_dirs/cls/epoch_2.pth'
    newest.write_bytes(newest.read_bytes()[:5000])
    # `resume` of the config means the same
    for argv in (('cls.py', '--resume', *BN), ('cls.py', *BN, 'resume=True')):
        lines = checked(*argv)
        assert not of('FAIL', lines)
        (warning,) = of('warn', lines)
        assert warning.startswith('--resume: passed over a damaged file') and 'epoch_2' in warning
        assert any('load_from is work_dirs/cls/epoch_1.pth' in text for text in of('ok', lines))


def test_config_says_how_many_masks_are_read(checked, data):
    """With none, their values are nobody's business, also where every sample is loaded."""
    # of the data to test on, which the step of training does not draw
    masks = images((data / SEG_MASKS).with_name('validation'))
    cv2.imwrite(str(masks[1]), np.full((64, 64), 7, np.uint8))
    for number, found in ((1, 0), (50, 1), (0, 0)):
        (data / 'some.py').write_text(
            "_base_ = 'seg.py'\n"
            f"custom_hooks = [dict(type='mmlavit.DatasetCheckHook', num_masks={number})]\n"
        )
        assert len(of('FAIL', checked('some.py', *SEG_BN))) == found, number
    lines = checked('some.py', '--data', *SEG_BN)
    assert not [text for text in of('FAIL', lines) if 'the mask has the values' in text]
