"""Data that does not fit the model or its own files stops a run, and all else passes."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image
from torch import nn

from mmlavit.checks.datasets import check_heads, check_samples, class_heads
from mmlavit.checks.masks import check_masks
from mmlavit.checks.pipeline import SampleError, name_files
from mmlavit.engine import (
    DatasetCheckHook,
    PortableRunner,
    add_dataset_check,
)
from mmlavit.errors import UserError

CLS = 'shapes/lavit-nano_shapes-cls'
DET = 'shapes/mask-rcnn_lavit-nano_shapes'
SEG = 'shapes/upernet_lavit-nano_shapes'
HEADS = {
    CLS: ['head'],
    DET: ['roi_head.bbox_head', 'roi_head.mask_head'],
    'shapes/retinanet_lavit-nano_shapes': ['bbox_head'],
    'detection/cascade-mask-rcnn_lavit-small_fpn_ms-3x_coco': [
        *(f'roi_head.bbox_head.{i}' for i in range(3)),
        *(f'roi_head.mask_head.{i}' for i in range(3)),
    ],
    SEG: ['decode_head', 'auxiliary_head'],
    'shapes/semantic-fpn_lavit-nano_shapes': ['decode_head'],
}


@pytest.fixture
def data(shapes, tmp_path):
    """A copy of Shapes to spoil."""
    return shutil.copytree(shapes, tmp_path / 'data')


def load(name, data):
    """A config of the repository on the copy of Shapes."""
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    cfg.work_dir = str(data.parent / 'work_dir')
    cfg.launcher = 'none'
    init_default_scope(cfg.default_scope)
    layout = {'mmpretrain': 'classification', 'mmdet': 'coco', 'mmseg': 'ade20k'}
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(data / layout[cfg.default_scope])
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if 'ann_file' in evaluator:
            evaluator.ann_file = str(data / 'coco/annotations/instances_val2017.json')
    cfg.model.backbone.init_cfg = None
    return cfg


def dataset(cfg, **changes):
    return DATASETS.build({**cfg.train_dataloader.dataset, **changes})


@pytest.mark.parametrize('name', [CLS, DET, SEG])
def test_fitting_data_passes(name, data):
    """The quick start's data and models fit each other, in training and in testing."""
    runner = PortableRunner.from_cfg(load(name, data))
    hook = DatasetCheckHook()
    hook.before_train(runner)
    hook.before_test(runner)


@pytest.mark.parametrize('name', HEADS)
def test_every_head_is_compared(name, data):
    """One class more in any single head stops the run with the head's name and both numbers."""
    cfg = load(name, data)
    cfg.model.backbone.arch = 'nano'
    if 'cascade' in name:
        cfg.model.neck.in_channels = [32, 64, 128, 256]
        for head in cfg.model.roi_head.bbox_head:
            head.fc_out_channels = 8
    model = MODELS.build(cfg.model)
    heads = class_heads(model)
    assert list(heads) == HEADS[name]
    data_set = nn.Module()  # a dataset of another make that has classes
    data_set.metainfo = dict(classes=[str(i) for i in range(heads[HEADS[name][0]].num_classes)])
    check_heads(model, data_set)
    for path, head in heads.items():
        head.num_classes += 1
        expected = f'model.{path}.num_classes is {head.num_classes}, but Module has '
        with pytest.raises(UserError, match=f'{expected}{head.num_classes - 1} classes: 0, 1, 2'):
            check_heads(model, data_set)
        head.num_classes -= 1
    data_set.metainfo = {}
    check_heads(model, data_set)


def test_heads_that_tell_no_classes_apart_are_left_alone():
    """Class-agnostic masks, boundaries and region proposals have a number of their own."""
    model = nn.Module()
    for name, attribute in (
        ('mask_head', dict(class_agnostic=True)),
        ('auxiliary_head', dict(boundary_threshold=0.1)),
        ('rpn_head', {}),
        ('bbox_head', {}),
    ):
        head = nn.Module()
        head.num_classes = 1
        for key, value in attribute.items():
            setattr(head, key, value)
        setattr(model, name, head)
    assert list(class_heads(model)) == ['bbox_head']
    model.language_model = nn.Identity()
    assert not class_heads(model)


def test_panoptic_data_is_compared_by_its_things(data):
    """Box and mask heads do not see stuff."""
    model = MODELS.build(load(DET, data).model)
    panoptic = nn.Module()
    panoptic.metainfo = dict(classes=('a', 'b', 'c', 'sky'), thing_classes=('a', 'b', 'c'))
    check_heads(model, panoptic)


WRAPPERS = {
    'none': lambda inner: inner,
    'repeat': lambda inner: dict(type='RepeatDataset', times=2, dataset=inner),
    'balanced in concat': lambda inner: dict(
        type='ConcatDataset',
        datasets=[dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=inner)],
    ),
}


@pytest.mark.parametrize('wrap', WRAPPERS)
@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (
            ('circle', 'star', 'square', 'moon'),
            r'2 of its 4 classes are no category .*: star, moon; '
            r'the file has circle, square, triangle\.',
        ),
        (
            ('square', 'circle'),
            'order of the annotation file, circle, square, and .* square, circle',
        ),
        ('circle', r"metainfo has classes='circle', .* write \('circle',\) with the comma"),
        (('square', 'triangle'), None),
    ],
)
def test_classes_of_a_coco_dataset_are_those_of_its_file(wrap, classes, message, data):
    """Missing and misplaced classes are found inside wrappers; a subset is a choice."""
    inner = {**load(DET, data).train_dataloader.dataset, 'metainfo': dict(classes=classes)}
    wrapped = DATASETS.build(WRAPPERS[wrap](inner))
    if message is None:
        check_samples(wrapped)
        return
    with pytest.raises(UserError, match=message) as error:
        check_samples(wrapped)
    assert str(error.value).startswith(f'CocoDataset ({data}/coco/annotations/instances_train')


def test_classes_of_coco_missing_from_a_file_are_found(data):
    """Who forgets metainfo has COCO's 80 classes, none of which the file has."""
    inner = load(DET, data).train_dataloader.dataset
    inner.pop('metainfo')
    message = '80 of its 80 classes are no category .*: person, .* and 70 more; the file has circle'
    with pytest.raises(UserError, match=message):
        PortableRunner.build_dataloader(dict(load(DET, data).train_dataloader, dataset=inner))


@pytest.mark.parametrize('wrap', WRAPPERS)
def test_dataset_without_samples_is_explained(wrap, data):
    """mmengine fails to concatenate nothing; the message names the file and the filter instead."""
    cfg = load(DET, data)
    inner = {**cfg.train_dataloader.dataset, 'filter_cfg': dict(min_size=1000)}
    loader = dict(cfg.train_dataloader, dataset=WRAPPERS[wrap](inner))
    with pytest.raises(UserError) as error:
        PortableRunner.build_dataloader(loader)
    file = data / 'coco/annotations/instances_train2017.json'
    assert str(error.value) == (
        f"CocoDataset ({file}) has no samples with filter_cfg={{'min_size': 1000}}"
    )


def test_infinite_sampler_without_samples_does_not_hang(data):
    """The run stops while the data is loaded, before workers look for an index."""
    cfg = load(SEG, data)
    cfg.train_dataloader.update(num_workers=1)
    cfg.train_dataloader.dataset.update(img_suffix='.jpeg', serialize_data=False)
    with pytest.raises(UserError, match=r"training\) has no samples with img_suffix='.jpeg'"):
        _ = PortableRunner.from_cfg(cfg).train_loop.dataloader


def test_other_errors_of_a_dataset_stay_as_they_are(data):
    """A dataset that fails for a reason of its own is not explained away."""
    cfg = load(SEG, data)
    cfg.train_dataloader.dataset.metainfo = dict(classes=('a', 'b'), palette=[[0, 0, 0]])
    with pytest.raises(ValueError, match='palette does not match classes'):
        PortableRunner.build_dataloader(cfg.train_dataloader)


@DATASETS.register_module()
class Refusing(torch.utils.data.Dataset):
    """A dataset of another make, which has its own reason to refuse a value."""

    def __init__(self, path):
        raise ValueError(f'path={path}: expected another')


def test_error_of_a_dataset_of_another_make_is_its_own():
    """Only mmengine's datasets take the argument with which an empty one is looked at."""
    loader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='RepeatDataset', times=2, dataset=dict(type='Refusing', path='a')),
    )
    with pytest.raises(ValueError, match='path=a: expected another'):
        PortableRunner.build_dataloader(loader)


def test_empty_part_of_concatenated_data_is_found(data):
    """A part without samples hides among others."""
    inner = load(DET, data).train_dataloader.dataset
    empty = {**inner, 'filter_cfg': dict(min_size=1000), 'serialize_data': False}
    both = DATASETS.build(dict(type='ConcatDataset', datasets=[inner, empty]))
    assert len(both)
    with pytest.raises(UserError, match='has no samples'):
        check_samples(both)


def spoil(data, value, dtype=np.uint8):
    """Put a value into one pixel of the last training mask."""
    path = sorted((data / 'ade20k/annotations/training').iterdir())[-1]
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(dtype)
    mask[5, 7] = value
    cv2.imwrite(str(path), mask)
    return path


PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


@pytest.mark.parametrize(
    ('value', 'dtype', 'changes', 'expected'),
    [
        (3, np.uint8, {}, None),
        (255, np.uint8, {}, None),
        (4, np.uint8, {}, r'the values 4, expected 0 to 3 for the 4 classes \(background, '),
        (256, np.uint16, {}, 'the values 256, expected 0 to 3'),
        (4, np.uint8, dict(reduce_zero_label=True), None),
        (255, np.uint8, dict(reduce_zero_label=True), None),
        (
            5,
            np.uint8,
            dict(reduce_zero_label=True),
            'the values 5, expected 1 to 4 .* ignored: 255 and 0, since reduce_zero_label is True',
        ),
        # the classes of ADE20K less one: masks hold all 150 and 0
        (150, np.uint8, dict(type='ADE20KDataset', subset=True), None),
        (
            151,
            np.uint8,
            dict(type='ADE20KDataset', subset=True),
            'the values 151, expected 1 to 150',
        ),
    ],
)
def test_mask_values_are_classes(value, dtype, changes, expected, data):
    """Whatever a pixel becomes must be a class or ignored; the file with another one is named."""
    cfg = load(SEG, data)
    path = spoil(data, value, dtype)
    changes = {'pipeline': PIPELINE, **changes}
    if changes.pop('subset', None):
        classes = DATASETS.get('mmseg.ADE20KDataset').METAINFO['classes'][1:]
        changes.update(metainfo=dict(classes=classes), reduce_zero_label=True)
    data_set = dataset(cfg, **changes)
    if expected is None:
        check_masks(data_set, {255}, 50)
        name_files(data_set, {255})
        assert len([data_set[i] for i in range(len(data_set))]) == 4
        return
    with pytest.raises(UserError, match=expected) as error:
        check_masks(data_set, {255}, 50)
    assert str(error.value).startswith(f'{path}: ')
    if dtype is np.uint8:
        # the run names it as well, among the masks that it loads
        name_files(data_set, {255})
        with pytest.raises(SampleError) as again:
            _ = [data_set[i] for i in range(len(data_set))]
        assert str(again.value) == str(error.value)
    # the last of four masks is among any two, and none of none
    check_masks(data_set, {255}, 0)
    with pytest.raises(UserError):
        check_masks(data_set, {255}, 2)


@pytest.mark.parametrize(('num_masks', 'stops'), [(1, True), (0, False)])
def test_mask_that_the_check_did_not_read_stops_the_run(num_masks, stops, data):
    """One bad mask among many is named when a worker loads it; 0 leaves all values alone."""
    cfg = load(SEG, data)
    path = spoil(data, 4)
    cfg.train_dataloader.update(batch_size=4, num_workers=1)
    runner = PortableRunner.from_cfg(cfg)
    DatasetCheckHook(num_masks=num_masks).before_train(runner)
    # drawn without end, four different ones at a time
    batches = iter(runner.train_dataloader)
    if not stops:
        assert any(4 in sample.gt_sem_seg.data for sample in next(batches)['data_samples'])
        return
    with pytest.raises(SampleError, match=f'{path}: the mask has the values 4, expected 0 to 3'):
        next(batches)


def test_palette_of_a_mask_holds_classes(data):
    """A mask with a palette is read as its indices, as mmseg does."""
    for path in (data / 'ade20k/annotations/training').iterdir():
        mask = Image.open(path).convert('P')
        mask.putpalette([200, 150, 100] * 256)
        mask.save(path)
        assert Image.open(path).mode == 'P'
    data_set = dataset(load(SEG, data))
    check_masks(data_set, {255}, 50)
    assert data_set[0]['data_samples'].gt_sem_seg.data.max() <= 3


def test_what_the_heads_ignore_is_no_mistake(data):
    """ignore_index belongs to the heads: 255 is an error where they ignore something else."""
    cfg = load(SEG, data)
    spoil(data, 255)
    DatasetCheckHook().before_train(PortableRunner.from_cfg(cfg))
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.ignore_index = 9
    with pytest.raises(UserError, match='the values 255, .* ignored: 9'):
        DatasetCheckHook().before_train(PortableRunner.from_cfg(cfg))


@pytest.mark.parametrize('when', ['before_train', 'before_test'])
def test_data_to_validate_and_to_test_on_is_checked(when, data):
    """Training looks at the validation data too."""
    cfg = load(DET, data)
    file = data / 'coco/annotations/instances_val2017.json'
    annotations = json.loads(file.read_text())
    annotations['categories'][0]['name'] = 'disc'
    file.write_text(json.dumps(annotations))
    with pytest.raises(UserError, match='instances_val2017.json.*: circle; the file has disc'):
        getattr(DatasetCheckHook(), when)(PortableRunner.from_cfg(cfg))


def test_classes_of_folders_are_compared(data):
    """A class without a folder would shift the labels behind it."""
    shutil.rmtree(data / 'classification/val/square')
    runner = PortableRunner.from_cfg(load(CLS, data))
    message = 'model.head.num_classes is 3, but CustomDataset .* has 2 classes: circle, triangle'
    with pytest.raises(UserError, match=message):
        DatasetCheckHook().before_train(runner)


def test_what_mmpretrain_says_of_folders_itself(data):
    """The page leaves these to CustomDataset: nothing at all, and classes without a folder."""
    cfg = load(CLS, data)
    folder = data / 'classification/train/square'
    for image in folder.iterdir():
        image.unlink()
    assert len(dataset(cfg)) == 4
    with pytest.raises(AssertionError, match=r'number of subfolders \(3\)'):
        dataset(cfg, metainfo=dict(classes=('circle', 'square')))
    (data / 'none/a').mkdir(parents=True)
    with pytest.raises(RuntimeError, match='Found 0 files'):
        dataset(cfg, data_root=str(data / 'none'), data_prefix='')


def test_a_configured_hook_is_kept(data):
    """The tools add the hook once, and num_masks=0 leaves masks of another kind alone."""
    cfg = load(SEG, data)
    spoil(data, 4)
    cfg.custom_hooks = [dict(type='mmlavit.DatasetCheckHook', num_masks=0)]
    runner = PortableRunner.from_cfg(cfg)
    add_dataset_check(runner)
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, DatasetCheckHook))
    hook.before_train(runner)
    cfg.pop('custom_hooks')
    runner = PortableRunner.from_cfg(cfg)
    add_dataset_check(runner)
    with pytest.raises(UserError, match='the values 4'):
        runner.call_hook('before_train')


def test_data_of_another_make_is_left_alone():
    """A dataset that nothing is known of has nothing to be compared."""
    other = torch.utils.data.TensorDataset(torch.zeros(3, 1))
    check_samples(other)
    check_heads(nn.Module(), other)
    check_masks(other, {255}, 50)
    check_samples(None)
