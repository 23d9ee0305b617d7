"""Bad input ends a run in one message that names the file, the key or the value."""

import cv2
import numpy as np
import pytest
import torch
from conftest import BN, ROOT, SEG_BN, load_tool
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from mmlavit.checks.config import missing_paths, misspelt_keys, wrong_ann_files
from mmlavit.cli.configs import read_config

TRAIN, TEST = load_tool('train'), load_tool('test')
PAGE = (ROOT / 'docs/bad_input.md').read_text()
NANO = str(ROOT / 'configs/shapes/lavit-nano_shapes-cls.py')
CIRCLES = 'shapes/classification/train/circle'
MASKS = 'shapes/ade20k/annotations/training'


@pytest.fixture
def stops(data, fails):
    """Run a tool, by default training, and return the one message with which that stops."""

    def call(*argv, tool=TRAIN):
        return fails(tool, *argv).rpartition(': error: ')[2].strip().replace(str(data), '.')

    return call


def test_image_that_a_worker_cannot_read_is_named(stops, data):
    """Training stops with the file and the reason."""
    path = sorted((data / CIRCLES).iterdir())[0]
    path.write_bytes(path.read_bytes()[:200])
    message = stops('cls.py', *BN, 'train_dataloader.num_workers=1')
    assert message == f'{CIRCLES}/{path.name}: image file is truncated' and f'`{message}`' in PAGE


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (np.zeros((20, 30)), 'the mask has 20x30 pixels (height x width), and its image'),
        (np.zeros((64, 64, 3)), 'an image of 3 channels, expected a mask, one channel'),
        (np.full((64, 64), 7), 'the mask gives the labels 7, expected 0 to 3 for the 4 classes, '),
    ],
)
def test_mask_that_the_check_did_not_read_is_named(mask, message, stops, data):
    """When the run loads it; on a GPU, a label beyond would end in a device-side assertion."""
    for path in (data / MASKS).iterdir():
        cv2.imwrite(str(path), mask.astype(np.uint8))
    found = stops('seg.py', *SEG_BN, 'default_hooks.dataset_check.num_masks=0')
    assert found.startswith(MASKS) and message in found


@pytest.mark.parametrize(
    'file', ['shapes/coco/val.json', 'shapes/coco/annotations/instances_train2017.json']
)
def test_file_that_the_evaluator_reads_is_named(file, data, stops):
    """It is looked for before training, not when the first epoch ends; testing says the same."""
    torch.save({'state_dict': {'a': torch.zeros(1)}}, data / 'some.pth')
    option = f'test_evaluator.ann_file={file}'
    message = stops('det.py', 'some.pth', '--cfg-options', option, tool=TEST)
    assert f'`{message}`' in PAGE
    (data / 'val.py').write_text(
        "_base_ = 'det.py'\nval_cfg = dict()\nval_dataloader = {{_base_.test_dataloader}}\n"
        f"val_evaluator = dict(type='CocoMetric', ann_file={file!r})\n"
    )
    assert stops('val.py') == message.replace('test_', 'val_')


def test_annotation_files_that_fit_are_found(data):
    """Without a data_root, beside other metrics, and of data that is concatenated."""
    cfg = read_config('det.py', None)
    own, test = cfg.test_evaluator, cfg.test_dataloader.dataset
    test.update(data_root='', ann_file=own.ann_file, data_prefix=dict(img=''))
    other = {**own, 'ann_file': 'shapes/coco/annotations/instances_train2017.json'}
    for evaluator in ([own, other], dict(type='Evaluator', metrics=[other, own])):
        cfg.test_evaluator = evaluator
        assert not missing_paths(cfg, 'test_dataloader') + wrong_ann_files(cfg, 'test_dataloader')
    cfg.test_evaluator = [other]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[test])
    (message,) = wrong_ann_files(cfg, 'test_dataloader')
    assert message.startswith('test_evaluator.0: ann_file is')
    cfg.test_dataloader.dataset.datasets += [{**test, 'ann_file': 'none.json'}]
    assert not wrong_ann_files(cfg, 'test_dataloader')
    (message,) = missing_paths(cfg, 'test_dataloader')
    assert message == f"test_dataloader: ann_file 'none.json' does not exist, seen from {data}"


def test_data_that_its_class_downloads_need_not_be_there(data):
    """As CIFAR10 of mmpretrain does."""
    cfg = read_config('cls.py', dict(train_dataloader=dict(dataset=dict(data_root='later'))))
    assert missing_paths(cfg, 'train_dataloader')
    cfg.train_dataloader.dataset.download = True
    assert not missing_paths(cfg, 'train_dataloader')


@pytest.mark.parametrize(
    'option',
    [
        'model.backbone.arch=huge',
        'model.backbone.windw_size=7',
        'model.backbone.type=mmlavit.LaVit',
        'train_dataloader.dataset.data_root=nowhere',
        'train_dataloader.dataset.data_prefix=trian',
        'val_evaluator.topks=1',
        'optim_wrapper.type=OptimWraper',
    ],
)
def test_value_of_the_config_is_named(option, stops):
    """A misspelt keyword or type, an impossible value, and data that is not there."""
    roots = [
        f'{split}_dataloader.dataset.data_root=shapes/classification' for split in ('train', 'val')
    ]
    message = stops(NANO, '--cfg-options', *roots, option)
    key, _, value = option.partition('=')
    assert key.split('.')[-1] in message or value in message


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('model = dict(backbone=tiny)', "NameError: name 'tiny' is not defined"),
        ('model = 1', 'bad.py: model is 1, expected a dictionary'),
        (
            'train_datalodaer = dict(batch_size=2)',
            "bad.py: the config has the key 'train_datalodaer', which nothing reads; did you mean "
            "'train_dataloader'? A variable of your own needs a name less alike",
        ),
    ],
)
def test_config_that_cannot_be_used_is_named(line, message, data, stops):
    """Whatever a config runs into while it is read, and keys that nothing reads."""
    (data / 'bad.py').write_text(f"_base_ = 'cls.py'\n{line}\n")
    assert message in stops('bad.py')


def test_own_variables_are_no_misspelt_keys():
    """Neither the repository's configs nor imports nor variables that are used are suspect."""
    configs = sorted((ROOT / 'configs').glob('[!_]*/*.py'))[::4]
    assert len(configs) > 5
    assert not [name for path in configs for name in misspelt_keys(Config.fromfile(path))]
    used = dict(type='Accuracy', topk=1)
    cfg = Config(dict(val_evaluator_a=used, val_evaluator=[used], test_pipeline=[]))
    assert not misspelt_keys(cfg)
    cfg.val_evaluator = []
    assert len(misspelt_keys(cfg)) == 1
    assert not misspelt_keys(Config(dict(OptimWrapper=OptimWrapper, optim_wraper=len)))
    for key, meant in (('modle', 'model'), ('load_form', 'load_from'), ('tset_cfg', 'test_cfg')):
        (message,) = misspelt_keys(Config({key: None}))
        assert f'{meant!r}' in message
