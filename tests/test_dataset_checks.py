"""Data that does not fit the model or its own files stops a run, and all else passes."""

import pickle
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, edit
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner.runner import _SlicedDataset
from torch import nn
from torch.utils.data import TensorDataset

from mmlavit.checks.datasets import (
    base_datasets,
    class_heads,
    empty_classes,
    wrong_categories,
    wrong_heads,
    wrong_instances,
    wrong_labels,
)
from mmlavit.checks.masks import wrong_masks
from mmlavit.datasets.guarded import GuardedDataset, SampleError
from mmlavit.engine import DatasetCheckHook, PortableRunner
from mmlavit.errors import UserError

CLS = 'shapes/lavit-nano_shapes-cls'
DET = 'shapes/mask-rcnn_lavit-nano_shapes'
SEG = 'shapes/upernet_lavit-nano_shapes'
HEADS = {
    CLS: ['head'],
    DET: ['roi_head.bbox_head', 'roi_head.mask_head'],
    'shapes/retinanet_lavit-nano_shapes': ['bbox_head'],
    SEG: ['decode_head', 'auxiliary_head'],
}
FILE = 'coco/annotations/instances_{}2017.json'


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
            evaluator.ann_file = str(data / FILE.format('val'))
    cfg.model.backbone.init_cfg = None
    return cfg


def dataset(cfg, **changes):
    return DATASETS.build({**cfg.train_dataloader.dataset, **changes})


@pytest.mark.parametrize('name', HEADS)
def test_every_head_is_compared(name, data):
    """One class more in any single head stops the run with the head's name and both numbers."""
    model = MODELS.build(load(name, data).model)
    heads = class_heads(model)
    assert list(heads) == HEADS[name]
    data_set = nn.Module()  # a dataset of another make that has classes
    data_set.metainfo = dict(classes=[str(i) for i in range(heads[HEADS[name][0]].num_classes)])
    assert not list(wrong_heads(model, data_set))
    for path, head in heads.items():
        head.num_classes += 1
        (problem,) = wrong_heads(model, data_set)
        assert problem.startswith(f'model.{path}.num_classes is {head.num_classes}, but Module has')
        head.num_classes -= 1


def test_heads_that_tell_no_classes_apart_are_left_alone():
    """Class-agnostic masks, boundaries, region proposals and stuff have numbers of their own."""
    model, panoptic = nn.Module(), nn.Module()
    for name in ('mask_head', 'auxiliary_head', 'rpn_head', 'bbox_head'):
        model.add_module(name, nn.Module())
        getattr(model, name).num_classes = 1
    model.mask_head.class_agnostic = True
    model.auxiliary_head.boundary_threshold = 0.1
    assert list(class_heads(model)) == ['bbox_head']
    panoptic.metainfo = dict(classes=('a', 'sky'), thing_classes=('a',))
    assert not list(wrong_heads(model, panoptic))
    model.language_model = nn.Identity()
    assert not class_heads(model)


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('square', 'circle'), r'Reorder the categories of \S*_train2017.json to square, circle$'),
        (('circle', 'moon'), r'1 of its 2 classes are no category .*: moon; the file has circle'),
        (('square', 'triangle'), None),
    ],
)
def test_classes_of_a_coco_dataset_are_those_of_its_file(classes, message, data):
    """Missing and misplaced classes are found inside wrappers; a subset is a choice."""
    inner = {**load(DET, data).train_dataloader.dataset, 'metainfo': dict(classes=classes)}
    balanced = dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=inner)
    wrapped = GuardedDataset(DATASETS.build(dict(type='ConcatDataset', datasets=[balanced])))
    problems = [problem for base in base_datasets(wrapped) for problem in wrong_categories(base)]
    assert len(problems) == (message is not None)
    assert message is None or re.search(message, problems[0])


@pytest.mark.parametrize('follow', [False, True])
def test_a_label_means_the_same_class_in_every_split(follow, data):
    """Files in different orders stop the run, also where each split's classes follow its file."""
    cfg = load(DET, data)
    edit(data / FILE.format('val'), lambda content: content['categories'].reverse())
    if follow:
        classes = ('triangle', 'square', 'circle')
        for split in ('val', 'test'):
            cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)
    hook, runner = DatasetCheckHook(), PortableRunner.from_cfg(cfg)
    match = 'one label would mean two' if follow else 'Reorder the categories of .*val2017.json to'
    with pytest.raises(UserError, match=match):
        hook.before_train(runner)
    learned = dict(meta=dict(dataset_meta=dict(classes=('circle', 'square', 'triangle'))))
    hook.after_load_checkpoint(runner, learned)
    with pytest.raises(UserError, match=match):
        hook.before_test(runner)


def test_boxes_that_are_all_dropped_stop_training(data):
    """Such as boxes from 0 to 1, which mmdet takes for less than a pixel."""

    def normalise(content):
        for annotation in content['annotations']:
            annotation['bbox'] = [value / 160 for value in annotation['bbox']]

    edit(data / FILE.format('train'), normalise)
    (problem,) = wrong_instances(dataset(load(DET, data), filter_cfg=None))
    assert 'no image has an annotation that counts' in problem


PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


@pytest.mark.parametrize(
    ('value', 'dtype', 'changes', 'expected'),
    [
        (255, np.uint8, {}, None),
        (4, np.uint8, {}, 'the values 4, expected 0 to 3 for the 4 classes (background, '),
        (256, np.uint16, {}, 'the values 256, expected 0 to 3'),
        (5, np.uint8, dict(reduce_zero_label=True), 'the values 5, expected 1 to 4 '),
        (255, np.uint8, dict(ignore_index=9), 'what is ignored: 9'),
        # the classes of ADE20K less one: masks hold all 150 and 0
        (150, np.uint8, dict(type='ADE20KDataset'), None),
        (151, np.uint8, dict(type='ADE20KDataset'), 'the values 151, expected 1 to'),
    ],
)
def test_mask_values_are_classes(value, dtype, changes, expected, data):
    """Whatever a pixel becomes must be a class or ignored: read from files, and when loaded."""
    path = sorted((data / 'ade20k/annotations/training').iterdir())[-1]
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(dtype)
    mask[5, 7] = value
    cv2.imwrite(str(path), mask)
    changes = {'pipeline': PIPELINE, **changes}
    if changes.get('type') == 'ADE20KDataset':
        classes = DATASETS.get('mmseg.ADE20KDataset').METAINFO['classes'][1:]
        changes.update(metainfo=dict(classes=classes), reduce_zero_label=True)
    data_set = dataset(load(SEG, data), **changes)
    guarded = GuardedDataset(data_set)
    if expected is None:
        assert not list(wrong_masks(data_set, 50, training=False))
        assert len([guarded[i] for i in range(len(guarded))]) == 4
        return
    (problem,) = wrong_masks(data_set, 50, training=False)
    assert problem.startswith(f'{path}: the mask has ') and expected in problem
    if dtype is np.uint8 and value != 151:
        with pytest.raises(SampleError, match=f'{path}: the mask gives the labels '):
            _ = [guarded[i] for i in range(len(guarded))]
    # the last of four masks is among any two, and none of none
    assert not list(wrong_masks(data_set, 0, training=False))
    assert list(wrong_masks(data_set, 2, training=False))


@pytest.mark.parametrize('others', [0, 1])
def test_masks_of_0_and_255_stop_training(others, data):
    """A single class teaches nothing; another one in a mask that was not sampled is enough."""
    paths = sorted((data / 'ade20k/annotations/training').iterdir())
    for path in paths:
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        mask = (mask > 0) * 255
        mask[0, 0] = others * (path == paths[1])
        cv2.imwrite(str(path), mask.astype(np.uint8))
    data_set = dataset(load(SEG, data))
    assert not list(wrong_masks(data_set, 2, training=False))
    problems = list(wrong_masks(data_set, 2, training=True))
    assert len(problems) == 1 - others
    assert all('hold background of the 4 classes' in p and '255' in p for p in problems)


def test_guard_is_the_dataset_inside(data):
    """Attributes are read and written through it, and workers get it whole."""
    inner = dataset(load(SEG, data), pipeline=PIPELINE)
    guarded = GuardedDataset(inner)
    guarded.test_mode = True
    assert inner.test_mode and guarded.metainfo == inner.metainfo and len(guarded) == len(inner)
    copied = pickle.loads(pickle.dumps(guarded))
    assert type(copied) is GuardedDataset and type(copied.dataset) is type(inner)
    assert torch.equal(copied[0]['inputs'], inner[0]['inputs'])
    with pytest.raises(AttributeError):
        _ = guarded.nothing_of_the_kind


def test_error_of_a_transform_is_no_fault_of_the_file(data):
    """Where the files are in order, the error keeps its type and its traceback."""
    crop = dict(type='RandomCrop', crop_size=(8, 8), cat_max_ratio='half')
    guarded = GuardedDataset(dataset(load(SEG, data), pipeline=[*PIPELINE[:2], crop]))
    with pytest.raises(TypeError):
        _ = guarded[0]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'train_dataloader.batch_size': 1}, r'decode_head.psp_modules.0.1.bn .*batch_size to 2'),
        (
            {f'model.{head}_head.loss_decode.loss_weight': 0.0 for head in ('decode', 'auxiliary')},
            'all gradients of the first step are 0',
        ),
        # a head with another ignore_index would take ignored pixels for a class
        (
            {'model.decode_head.ignore_index': 9},
            'decode_head.ignore_index is 9, .* ignore_index=255',
        ),
    ],
)
def test_first_step_must_teach(options, message, data):
    """A norm over one value, and losses without gradients, stop the run with their reason."""
    cfg = load(SEG, data)
    cfg.train_dataloader.batch_size = 2
    cfg.merge_from_dict(options)
    with pytest.raises(UserError, match=message):
        PortableRunner.from_cfg(cfg).train()


@pytest.mark.parametrize('ann_file', ['', 'images.txt'])
def test_images_without_labels_have_no_wrong_ones(ann_file, data):
    """Images to predict, in a folder or in a list."""
    (data / 'classification/images.txt').write_text('val/circle/00000000.png')
    cfg = load(CLS, data)
    images = dataset(cfg, ann_file=ann_file, with_label=False, metainfo=dict(classes=['a', 'b']))
    assert len(images)
    assert not [*wrong_labels(MODELS.build(cfg.model), images), *empty_classes(images)]


def test_data_of_another_make_is_left_alone():
    """A dataset that nothing is known of has nothing to be compared."""
    other = TensorDataset(torch.zeros(3, 1))
    assert list(base_datasets(GuardedDataset(other))) == [other] and GuardedDataset(other)[0]
    sliced = GuardedDataset(_SlicedDataset(GuardedDataset(other), 2))  # for num_batch_per_epoch
    assert list(base_datasets(sliced)) == [other]
    found = [*wrong_categories(other), *wrong_heads(nn.Module(), other), *wrong_instances(other)]
    assert not found and not list(wrong_masks(other, 50, training=True))
