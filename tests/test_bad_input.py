"""Bad input ends a run in one message that names the file, the key or the value."""

import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, forget_runs, load_tool
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from torch import nn

from mmlavit.checks.config import missing_paths, misspelt_keys, wrong_ann_files
from mmlavit.checks.pipeline import SampleError
from mmlavit.cli.configs import read_config
from mmlavit.cli.launch import build_runner
from mmlavit.errors import UserError

TRAIN, TEST = load_tool('train'), load_tool('test')
NANO = str(ROOT / 'configs/shapes/lavit-nano_shapes-cls.py')
BN = ('--cfg-options', 'model.backbone.norm_cfg.type=BN')
SEG_BN = ('--cfg-options', 'model.decode_head.norm_cfg.type=BN')
PAGE = (ROOT / 'docs/bad_input.md').read_text()
CIRCLES = 'shapes/classification/train/circle'
MASKS = 'shapes/ade20k/annotations/training'


@pytest.fixture
def data(workspace, tmp_path, monkeypatch):
    """A copy of the workspace to spoil, in which the tools are started."""
    root = shutil.copytree(workspace, tmp_path / 'work')
    monkeypatch.chdir(root)
    monkeypatch.setenv('LOCAL_RANK', '0')
    yield root
    forget_runs()


@pytest.fixture
def stops(data, fails):
    """Train, and return the one message with which that stops, as the page has it."""

    def call(*argv):
        message = fails(TRAIN, *argv).rpartition(': error: ')[2].strip()
        message = message.replace(str(data), '.')
        assert f'`{message}`' in PAGE
        return message

    return call


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (lambda content: content[: len(content) // 2], 'image file is truncated'),
        (lambda content: b'', 'the file is empty'),
        (lambda content: b'no image', 'not an image of a known format'),
    ],
)
def test_image_that_a_worker_cannot_read_is_named(content, reason, stops, data):
    """Training stops with the file and the reason, from a worker process as well."""
    path = sorted((data / CIRCLES).iterdir())[0]
    path.write_bytes(content(path.read_bytes()))
    workers = ('train_dataloader.num_workers=1',) if reason.startswith('image') else ()
    assert stops('cls.py', *BN, *workers) == f'{CIRCLES}/{path.name}: {reason}'


def test_missing_image_is_named(stops, data):
    """mmdet knows images from the annotation file only."""
    (data / 'shapes/coco/train2017/000000000002.png').unlink()
    assert stops('det.py') == 'shapes/coco/train2017/000000000002.png: no such file'


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (
            np.zeros((20, 20)),
            f'{MASKS}/ADE_train_00000001.png: the mask has 20x20 pixels (height x width), and its '
            'image shapes/ade20k/images/training/ADE_train_00000001.png 64x64',
        ),
        (
            np.zeros((64, 64, 3)),
            f'{MASKS}/ADE_train_00000001.png: an image of 3 channels, expected a mask, one channel '
            'that holds class numbers',
        ),
    ],
)
def test_mask_that_does_not_fit_its_image_is_named(mask, message, stops, data):
    """Also where the check before training reads no masks."""
    cv2.imwrite(str(data / MASKS / 'ADE_train_00000001.png'), mask)
    (data / 'seg_unchecked.py').write_text(
        "_base_ = 'seg.py'\ncustom_hooks = [dict(type='mmlavit.DatasetCheckHook', num_masks=0)]\n"
    )
    assert stops('seg_unchecked.py', *SEG_BN) == message


def test_label_beyond_the_classes_is_named(stops, data):
    """On a GPU such a label would end in a device-side assertion."""
    names = sorted(path.name for path in (data / CIRCLES).iterdir())
    lines = [f'circle/{name} {number}' for number, name in enumerate(names)]
    (data / 'shapes/classification/train.txt').write_text('\n'.join(lines))
    options = ('ann_file=train.txt', 'metainfo.classes="[circle,square,triangle]"')
    assert stops('cls.py', *BN, *(f'train_dataloader.dataset.{o}' for o in options)) == (
        f'CustomDataset (shapes/classification/train.txt): {CIRCLES}/{names[3]} has the label 3, '
        'expected 0 to 2 for 3 classes'
    )


@pytest.mark.parametrize(
    'option',
    [
        'model.backbone.window_size=0',
        'model.backbone.arch=huge',
        'model.backbone.out_indices="(4,)"',
        'model.backbone.windw_size=7',
        'model.backbone.type=mmlavit.LaVit',
        'train_dataloader.dataset.data_root=nowhere',
        'train_dataloader.dataset.data_prefix=trian',
    ],
)
def test_value_of_the_config_is_named(option, stops):
    """A misspelt keyword, an impossible value, and data that is not there."""
    roots = [f'{split}_dataloader.dataset.data_root=shapes/classification'
             for split in ('train', 'val')]  # fmt: skip
    message = stops(NANO, '--cfg-options', *roots, option)
    assert option.partition('=')[0].split('.')[-1] in message


@pytest.mark.parametrize(
    'file', ['shapes/coco/val.json', 'shapes/coco/annotations/instances_train2017.json']
)
def test_file_that_the_evaluator_reads_is_named(file, data, fails):
    """It is looked for before training, not when the first epoch ends; testing says the same."""
    option = f'test_evaluator.ann_file={file}'
    torch.save({'state_dict': {'a': torch.zeros(1)}}, data / 'some.pth')
    message = fails(TEST, 'det.py', 'some.pth', '--cfg-options', option)
    message = message.rpartition(': error: ')[2].strip().replace(str(data), '.')
    assert f'`{message}`' in PAGE
    (data / 'val.py').write_text(
        "_base_ = 'det.py'\nval_cfg = dict()\nval_dataloader = {{_base_.test_dataloader}}\n"
        f"val_evaluator = dict(type='CocoMetric', ann_file={file!r})\n"
    )
    found = fails(TRAIN, 'val.py').rpartition(': error: ')[2].strip().replace(str(data), '.')
    assert found == message.replace('test_', 'val_')


def test_annotation_file_without_a_root_is_looked_for(data):
    """An empty data_root leaves the paths as they are, seen from the working directory."""
    cfg = read_config('det.py', None)
    file = cfg.test_evaluator.ann_file
    cfg.test_dataloader.dataset.update(data_root='', ann_file=file, data_prefix=dict(img=''))
    assert missing_paths(cfg, 'test_dataloader') + wrong_ann_files(cfg, 'test_dataloader') == []
    cfg.test_dataloader.dataset.ann_file = 'none.json'
    (message,) = missing_paths(cfg, 'test_dataloader')
    assert message == f"test_dataloader: ann_file 'none.json' does not exist, seen from {data}"


def test_evaluators_that_read_more_than_one_file(data):
    """One of the metrics reads the file of the data; who concatenates data merges files."""
    cfg = read_config('det.py', None)
    other = dict(type='CocoMetric', ann_file='shapes/coco/annotations/instances_train2017.json')
    own = cfg.test_evaluator
    for evaluator in ([own, other], dict(type='Evaluator', metrics=[other, own]), [other]):
        cfg.test_evaluator = evaluator
        expected = [] if len(evaluator) == 2 else ['test_evaluator.0: ann_file is']
        found = wrong_ann_files(cfg, 'test_dataloader')
        assert [text.partition(" '")[0] for text in found] == expected
    both = [cfg.train_dataloader.dataset, cfg.test_dataloader.dataset]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=both)
    assert wrong_ann_files(cfg, 'test_dataloader') == []


def test_misspelt_key_of_the_config_is_named(stops, data):
    """mmengine would train with the base's dataloader instead."""
    (data / 'bad.py').write_text(f'_base_ = {NANO!r}\ntrain_datalodaer = dict(batch_size=2)\n')
    assert stops('bad.py').startswith("bad.py: the config has the key 'train_datalodaer'")


def test_misspelt_key_of_a_dataloader_is_named(stops, data):
    """No registry builds a dataloader, so its arguments are compared by name."""
    (data / 'bad.py').write_text("_base_ = 'cls.py'\ntrain_dataloader = dict(bach_size=2)\n")
    assert stops('bad.py').startswith("bad.py: train_dataloader: no argument 'bach_size'")


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (
            'optim_wrapper = dict(optimizer=dict(rate=1))',
            "optim_wrapper.optimizer: SGD: no argument 'rate'",
        ),
        (
            "optim_wrapper = dict(optimizer=dict(type='SDG'))",
            "optim_wrapper.optimizer: type 'SDG' is unknown; did you mean 'SGD'?",
        ),
        (
            "optim_wrapper = dict(type='OptimWraper')",
            "optim_wrapper: type 'OptimWraper' is unknown; did you mean 'OptimWrapper'?",
        ),
        (
            "param_scheduler = dict(type='MultiStepLR', milestone=[1])",
            "param_scheduler: MultiStepLR: no argument 'milestone'; did you mean 'milestones'?",
        ),
        (
            'train_cfg = dict(max_epoch=2)',
            "train_cfg: ResumableEpochLoop: no argument 'max_epoch'; did you mean 'max_epochs'?",
        ),
        (
            "train_cfg = dict(type='IterBasedTrainLoop')",
            'train_cfg has by_epoch, max_epochs, val_interval, type, expected one of type and '
            'by_epoch',
        ),
        (
            'val_cfg = dict(fp=True)',
            "val_cfg: ValLoop: no argument 'fp'; did you mean 'fp16'?",
        ),
        (
            'val_evaluator = dict(topks=1)',
            "val_evaluator: Accuracy: no argument 'topks'; did you mean 'topk'?",
        ),
        (
            'train_dataloader = dict(dataset=dict(with_lable=True))',
            "train_dataloader.dataset: CustomDataset: no argument 'with_lable'; did you mean "
            "'with_label'?",
        ),
        (
            "train_dataloader = dict(dataset=dict(pipeline=[dict(type='RandomFlip', prob=2.0)]))",
            'train_dataloader.dataset.pipeline.0: RandomFlip: ',
        ),
        (
            "train_dataloader = dict(sampler=dict(type='DefaultSampl'))",
            "train_dataloader.sampler: type 'DefaultSampl' is unknown; did you mean "
            "'DefaultSampler'?",
        ),
        (
            "custom_hooks = [dict(type='mmlavit.DatasetCheckHook', num_mask=0)]",
            "custom_hooks.0: DatasetCheckHook: no argument 'num_mask'; did you mean 'num_masks'?",
        ),
    ],
)
def test_what_training_builds_names_the_refused_value(line, message, data, fails):
    """Loops, datasets, metrics, optimizers and schedules are built when the model is there."""
    norm = "model = dict(backbone=dict(norm_cfg=dict(type='BN')))"
    (data / 'bad.py').write_text(f"_base_ = 'cls.py'\n{norm}\n{line}\n")
    assert fails(TRAIN, 'bad.py').rpartition(': error: ')[2].startswith(message)


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('model = dict(backbone=tiny)', "NameError: name 'tiny' is not defined"),
        ('model = dict(', 'never closed'),
    ],
)
def test_config_that_cannot_be_read_is_named(line, message, data, fails):
    """Whatever a config runs into while it is read is the config's."""
    (data / 'bad.py').write_text(f'_base_ = {NANO!r}\n{line}\n')
    found = fails(TRAIN, 'bad.py')
    assert "config file 'bad.py' cannot be read" in found and message in found


def test_value_that_is_no_dictionary_is_named(data, fails):
    """A config may replace a dictionary by anything."""
    (data / 'bad.py').write_text(f'_base_ = {NANO!r}\nmodel = 1\n')
    assert 'bad.py: model is 1, expected a dictionary' in fails(TRAIN, 'bad.py')
    assert 'train_cfg is' in fails(TRAIN, 'cls.py', '--cfg-options', 'train_cfg=5')


def test_work_dir_that_cannot_be_written_to_is_named(stops):
    """A path below a regular file fails for every user."""
    assert stops('cls.py', '--work-dir', 'cls.py/run').startswith('work dir')


def test_own_variables_are_no_misspelt_keys(data):
    """Neither the repository's configs nor a variable that the runner's keys use are suspect."""
    configs = sorted((ROOT / 'configs').glob('[!_]*/*.py'))[::4]
    assert len(configs) > 5
    assert not [name for path in configs for name in misspelt_keys(Config.fromfile(path))]
    used = dict(type='Accuracy', topk=1)
    cfg = Config(dict(val_evaluator_a=used, val_evaluator=[used], test_pipeline=[]))
    assert not misspelt_keys(cfg)
    cfg.val_evaluator = []
    assert len(misspelt_keys(cfg)) == 1
    for key, meant in (('modle', 'model'), ('load_form', 'load_from'), ('tset_cfg', 'test_cfg')):
        (message,) = misspelt_keys(Config({key: None}))
        assert f'{meant!r}' in message


@MODELS.register_module()
class Constructed(nn.Module):
    """Fails in a way of choice while it is built."""

    def __init__(self, how):
        super().__init__()
        if how == 'refused':
            raise ValueError('how=refused: expected another')
        {'bug': lambda: int('x'), 'index': lambda: [][1]}[how]()


@pytest.mark.parametrize(
    ('how', 'error', 'message'),
    [
        ('refused', UserError, r'model: Constructed: how=refused: expected another'),
        ('bug', ValueError, 'invalid literal'),
        ('index', IndexError, 'list index out of range'),
    ],
)
def test_bug_in_a_constructor_keeps_its_traceback(how, error, message, data):
    """Only what a constructor refuses by itself is the config's fault."""
    cfg = read_config('cls.py', None)
    cfg.update(work_dir='work', launcher='none')
    cfg.model = dict(type='mmengine.Constructed', how=how)
    with pytest.raises(error, match=message):
        build_runner(cfg)


def test_assertion_without_a_message_is_quoted(data):
    """Upstream asserts without a word; the condition says what was expected."""
    cfg = read_config('det.py', {'model.neck.num_outs': 1})
    cfg.update(work_dir='work', launcher='none')
    with pytest.raises(UserError, match=r'^model.neck: FPN: assert num_outs >= '):
        build_runner(cfg)


def test_error_of_a_worker_is_its_message():
    """torch hands on the text of a traceback; other texts stay as they are."""
    text = (
        'Caught SampleError in DataLoader worker process 0.\nOriginal Traceback (most recent call '
        'last):\n  File "x.py", line 1\nmmlavit.engine.checked_pipeline.SampleError: a.png: gone\n'
    )
    assert str(SampleError(text)) == 'a.png: gone'
    assert str(SampleError('a: b')) == 'a: b'


def test_images_are_converted_as_the_page_says(tmp_path):
    """OpenCV makes 8-bit BGR of every kind, keeps the upper 8 of 16 bits and drops transparency."""

    def load(name):
        return LoadImageFromFile()(dict(img_path=str(tmp_path / name)))['img']

    colour = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    smooth = np.full((8, 12, 3), (200, 100, 50), np.uint8)
    image = Image.fromarray(colour[..., ::-1])
    image.convert('L').save(tmp_path / 'grey.png')
    Image.fromarray(smooth[..., ::-1]).convert('CMYK').save(tmp_path / 'cmyk.jpg', quality=95)
    image.putalpha(3)
    image.save(tmp_path / 'alpha.png')
    deep = colour.astype(np.uint16) * 256 + 200
    cv2.imwrite(str(tmp_path / 'deep.png'), deep)
    cv2.imwrite(str(tmp_path / 'deep.tif'), deep)
    cv2.imwrite(str(tmp_path / 'grey16.png'), deep[..., 0])
    cv2.imwrite(str(tmp_path / 'dark.png'), deep // 16)

    grey = load('grey.png')
    assert grey.shape == (8, 12, 3) and (grey == grey[..., :1]).all()
    assert (load('alpha.png') == colour).all()
    assert (load('deep.png') == colour).all()
    assert np.abs(load('deep.tif').astype(int) - colour).max() <= 1
    assert (load('grey16.png') == colour[..., :1]).all()
    assert load('dark.png').max() < 16
    assert np.abs(load('cmyk.jpg').astype(int) - smooth).max() <= 3


def test_page_lists_every_case():
    """The cases of the table, each with what training and the tool say."""
    rows = re.findall(r'^\| (?!case)(.+?) \| (.+?) \| (.+) \|$', PAGE, re.M)
    assert len(rows) >= 24
    assert all(training.strip() and tool.strip() for _, training, tool in rows)
