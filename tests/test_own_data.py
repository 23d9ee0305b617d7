"""The configs of docs/your_own_data.md, letter by letter, on small data of their kind."""

import json
import re
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from conftest import ROOT, forget_runs, load_tool, metrics_of

PAGE = ROOT / 'docs/your_own_data.md'
CONFIGS = dict(re.findall(r'^```python\n# (\w+\.py)\n(.*?)^```', PAGE.read_text(), re.M | re.S))

# A nano model, small images and few proposals; everything else is the page's.
SMALL = """
model.backbone.arch=nano
train_dataloader.dataset.pipeline.2.scale=(96,96)
val_dataloader.dataset.pipeline.1.scale=(96,96) test_dataloader.dataset.pipeline.1.scale=(96,96)
train_dataloader.num_workers=0 val_dataloader.num_workers=0 test_dataloader.num_workers=0
train_dataloader.persistent_workers=False val_dataloader.persistent_workers=False
test_dataloader.persistent_workers=False
"""
OPTIONS = {
    'my_parts.py': """
model.neck.in_channels=[32,64,128,256] model.roi_head.bbox_head.fc_out_channels=16
model.roi_head.mask_head.num_convs=1 model.train_cfg.rpn_proposal.max_per_img=50
model.train_cfg.rcnn.sampler.num=16 model.test_cfg.rpn.max_per_img=50
model.test_cfg.rcnn.max_per_img=5 train_cfg.max_epochs=1 train_dataloader.batch_size=4
""",
    'my_streets.py': """
model.data_preprocessor.size=(64,64) train_dataloader.dataset.pipeline.3.crop_size=(64,64)
model.decode_head.in_channels=[32,64,128,256] model.decode_head.channels=16
model.auxiliary_head.in_channels=128 model.auxiliary_head.channels=16
train_cfg.max_iters=1 train_cfg.val_interval=1 default_hooks.checkpoint.interval=1
""",
}
OPTIONS = {name: ['--cfg-options', *(SMALL + text).split()] for name, text in OPTIONS.items()}
TRAIN, TEST = load_tool('train'), load_tool('test')


@pytest.fixture(scope='module')
def checkout(tmp_path_factory, shapes):
    """A checkout as the page describes it: the configs in its root, and both kinds of data."""
    root = tmp_path_factory.mktemp('checkout')
    (root / 'configs').symlink_to(ROOT / 'configs')
    for name, text in CONFIGS.items():
        (root / name).write_text(text)
    for split, folder in (('train', 'training'), ('val', 'validation')):
        for kind, source in (('images', 'images'), ('masks', 'annotations')):
            shutil.copytree(
                shapes / 'ade20k' / source / folder, root / 'data/streets' / kind / split
            )
        shutil.copytree(shapes / f'coco/{split}2017', root / 'data/parts' / split)
        file = shapes / f'coco/annotations/instances_{split}2017.json'
        annotations = json.loads(file.read_text())
        names = ('bolt', 'nut', 'screw', 'washer')
        # ids as many tools write them: neither from 0 nor without gaps
        annotations['categories'] = [{'id': 10 * i + 5, 'name': n} for i, n in enumerate(names)]
        for i, annotation in enumerate(annotations['annotations']):
            annotation['category_id'] = 10 * (i % 4) + 5
        (root / f'data/parts/{split}.json').write_text(json.dumps(annotations))
    return root


@pytest.fixture(autouse=True)
def isolated(checkout, monkeypatch):
    """Work in the checkout, and leave no default scope, logger or variable behind."""
    monkeypatch.chdir(checkout)
    monkeypatch.setenv('LOCAL_RANK', '0')
    yield
    forget_runs()


@pytest.mark.parametrize(
    ('name', 'checkpoint', 'metric', 'classes'),
    [
        ('my_parts.py', 'epoch_1.pth', 'coco/segm_mAP', 'bolt nut screw washer'),
        ('my_streets.py', 'iter_1.pth', 'mIoU', 'background road building tree'),
    ],
)
def test_config_of_the_page_trains_and_evaluates(name, checkpoint, metric, classes, run):
    """The block trains a step, validates, and its checkpoint evaluates to a finite number."""
    assert f'{metric}: ' in run(TRAIN, name, *OPTIONS[name])
    path = f'work_dirs/{Path(name).stem}/{checkpoint}'
    meta = torch.load(path, weights_only=False)['meta']
    assert meta['iter'] == 1
    assert list(meta['dataset_meta']['classes']) == classes.split()
    assert 0 <= metrics_of(run(TEST, name, path, *OPTIONS[name]))[metric] <= 100


PARTS = "train_dataloader.dataset.metainfo.classes=('bolt','nut','screw','washer')"
STREETS = 'train_dataloader.dataset.data_prefix.seg_map_path=masks/{}'
MISTAKES = {
    'a class that the annotation file lacks': PARTS.replace('washer', 'washers'),
    'classes in another order': PARTS.replace("'bolt','nut'", "'nut','bolt'"),
    'one class without the comma': PARTS.split('=')[0] + '=bolt',
    'a head with another number': 'model.decode_head.num_classes=150',
    'no samples': 'train_dataloader.dataset.img_suffix=.jpg',
    'mask values beyond': STREETS.format('beyond'),
    'a colour image as a mask': STREETS.format('colour'),
    'an image without a mask': STREETS.format('missing'),
    'dataset and pipeline disagree': 'train_dataloader.dataset.pipeline.1.reduce_zero_label=True',
}
ROWS = PAGE.read_text().partition('| what is wrong | message |\n|---|---|\n')[2]
ROWS = [line for line in ROWS.splitlines() if line.startswith('|')]


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistake_of_the_page_ends_in_its_message(mistake, checkout, fails):
    """The table quotes the messages as they are, but for the names of the masks' folders."""
    option = MISTAKES[mistake]
    masks = sorted((checkout / 'data/streets/masks/train').iterdir())
    for folder, change in (
        ('beyond', lambda mask: mask * 0 + 4),
        ('colour', lambda mask: cv2.cvtColor(mask, cv2.COLOR_GRAY2BGR)),
    ):
        (masks[0].parents[1] / folder).mkdir(exist_ok=True)
        for path in masks:
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(path.parents[1] / folder / path.name), change(mask))
    name = 'my_parts.py' if 'metainfo' in option else 'my_streets.py'
    found = fails(TRAIN, name, *OPTIONS[name], option).partition('error: ')[2].strip()
    folder = option.rpartition('/')[2] if '/' in option else 'train'
    for old, new in ((f'masks/{folder}', 'masks/train'), (masks[0].stem, 'a')):
        found = found.replace(old, new)
    (row,) = [row for row in ROWS if row.startswith(f'| {mistake}')]
    assert found == row.split('`')[1]


def test_page_is_tested_in_full():
    """Both blocks and every row of the table are found."""
    assert len(ROWS) == len(MISTAKES) and list(CONFIGS) == list(OPTIONS)
