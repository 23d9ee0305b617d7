"""Data that does not fit the model or its own files stops a run, and all else passes."""

import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmlavit.checks.datasets import (
    base_datasets,
    class_heads,
    wrong_categories,
    wrong_heads,
    wrong_instances,
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


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


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
    data_set.metainfo = {}
    assert not list(wrong_heads(model, data_set))


def test_heads_that_tell_no_classes_apart_are_left_alone():
    """Class-agnostic masks, boundaries, region proposals and stuff have numbers of their own."""
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
    panoptic = nn.Module()
    panoptic.metainfo = dict(classes=('a', 'sky'), thing_classes=('a',))
    assert not list(wrong_heads(model, panoptic))
    model.language_model = nn.Identity()
    assert not class_heads(model)


WRAPPERS = {
    'none': lambda inner: inner,
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
            r'2 of its 4 classes are no category .*: star, moon; the file has circle, square, tri',
        ),
        (('square', 'circle'), r'Reorder the categories of \S*_train2017.json to square, circle$'),
        ('circle', r"metainfo has classes='circle', .* write \('circle',\) with the comma"),
        (('square', 'triangle'), None),
    ],
)
def test_classes_of_a_coco_dataset_are_those_of_its_file(wrap, classes, message, data):
    """Missing and misplaced classes are found inside wrappers; a subset is a choice."""
    inner = {**load(DET, data).train_dataloader.dataset, 'metainfo': dict(classes=classes)}
    wrapped = GuardedDataset(DATASETS.build(WRAPPERS[wrap](inner)))
    problems = [problem for base in base_datasets(wrapped) for problem in wrong_categories(base)]
    if message is None:
        assert not problems
    else:
        (problem,) = problems
        assert pytest.raises(UserError, match=message).matches(UserError(problem))


@pytest.mark.parametrize('follow', [False, True])
def test_a_label_means_the_same_class_in_every_split(follow, data):
    """Files in different orders stop the run, also where each split's classes follow its file."""
    cfg = load(DET, data)
    edit(data / FILE.format('val'), lambda content: content['categories'].reverse())
    if follow:
        classes = ('triangle', 'square', 'circle')
        for split in ('val', 'test'):
            cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)
    hook = DatasetCheckHook()
    match = 'one label would mean two' if follow else 'Reorder the categories of .*val2017.json to'
    with pytest.raises(UserError, match=f'{match}.*'):
        hook.before_train(PortableRunner.from_cfg(cfg))
    learned = dict(meta=dict(dataset_meta=dict(classes=('circle', 'square', 'triangle'))))
    runner = PortableRunner.from_cfg(cfg)
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


@pytest.mark.parametrize('workers', [0, 1])
def test_dataset_without_samples_is_explained(workers, data):
    """The run stops while the data is loaded, before the infinite sampler looks for an index."""
    cfg = load(SEG, data)
    cfg.train_dataloader.update(num_workers=workers)
    cfg.train_dataloader.dataset.update(img_suffix='.jpeg', serialize_data=bool(workers))
    with pytest.raises(UserError, match=r"has no samples with .*img_suffix='.jpeg'"):
        _ = PortableRunner.from_cfg(cfg).train_loop.dataloader


def spoil(data, value, dtype=np.uint8):
    """Put a value into one pixel of the last training mask."""
    path = sorted((data / 'ade20k/annotations/training').iterdir())[-1]
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(dtype)
    mask[5, 7] = value
    cv2.imwrite(str(path), mask)
    return path


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
        (4, np.uint8, dict(reduce_zero_label=True), None),
        (5, np.uint8, dict(reduce_zero_label=True), 'the values 5, expected 1 to 4 '),
        (9, np.uint8, dict(ignore_index=9), None),
        (255, np.uint8, dict(ignore_index=9), 'what is ignored: 9'),
        # the classes of ADE20K less one: masks hold all 150 and 0
        (150, np.uint8, dict(type='ADE20KDataset', subset=True), None),
        (151, np.uint8, dict(type='ADE20KDataset', subset=True), 'the values 151, expected 1 to'),
    ],
)
def test_mask_values_are_classes(value, dtype, changes, expected, data):
    """Whatever a pixel becomes must be a class or ignored: read from files, and when loaded."""
    path = spoil(data, value, dtype)
    changes = {'pipeline': PIPELINE, **changes}
    if changes.pop('subset', None):
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


def test_heads_ignore_what_the_dataset_ignores(data):
    """A head with another ignore_index would take ignored pixels for a class."""
    cfg = load(SEG, data)
    cfg.model.decode_head.ignore_index = 9
    with pytest.raises(UserError, match='decode_head.ignore_index is 9, .* ignore_index=255'):
        DatasetCheckHook().before_train(PortableRunner.from_cfg(cfg))


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


@pytest.mark.parametrize('num_workers', [0, 1])
def test_guard_names_the_file(num_workers, data):
    """Also from a worker, whose error arrives as a text, and where another index was asked for."""
    inner = dataset(load(SEG, data), pipeline=PIPELINE)
    path = data / 'ade20k/images/training/ADE_train_00000003.png'
    path.unlink()
    twice = GuardedDataset(torch.utils.data.ConcatDataset([inner, inner]))
    loader = DataLoader(twice, batch_size=None, num_workers=num_workers)
    with pytest.raises(SampleError) as error:
        list(loader)
    assert str(error.value) == f'{path}: no such file'


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
            {
                'model.decode_head.loss_decode.loss_weight': 0.0,
                'model.auxiliary_head.loss_decode.loss_weight': 0.0,
            },
            'all gradients of the first step are 0',
        ),
        ({}, None),
    ],
)
def test_first_step_must_teach(options, message, data):
    """A norm over one value, and losses without gradients, stop the run with their reason."""
    cfg = load(SEG, data)
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_iters=1, val_interval=2)
    cfg.merge_from_dict(options)
    cfg.custom_hooks = []
    runner = PortableRunner.from_cfg(cfg)
    if message is None:
        runner.train()
    else:
        with pytest.raises(UserError, match=message):
            runner.train()


def test_data_of_another_make_is_left_alone():
    """A dataset that nothing is known of has nothing to be compared."""
    other = TensorDataset(torch.zeros(3, 1))
    assert list(base_datasets(GuardedDataset(other))) == [other] and GuardedDataset(other)[0]
    found = [*wrong_categories(other), *wrong_heads(nn.Module(), other), *wrong_instances(other)]
    assert not found and not list(wrong_masks(other, 50, training=True))
