"""Every config of the repository trains and predicts, on real files through upstream's classes."""

import math
import subprocess
import sys
from pathlib import Path

import mmpretrain
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from mmlavit.engine.launch import build_runner
from mmlavit.models import LaViT

CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parts
)
IMAGENET = [path for path in CONFIGS if path.match('configs/classification/*')]


def load(path, shapes, tmp_path):
    """The config as it is, on a handful of Shapes images and for one iteration."""
    cfg = Config.fromfile(ROOT / path)
    cfg.work_dir = str(tmp_path)
    cfg.launcher = 'none'
    for name, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        loader = cfg[f'{name}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(type='CustomDataset', data_root=str(shapes / 'classification'))
        loader.dataset.pop('split', None)
        loader.dataset.update(data_prefix=split, indices=2)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
    cfg.model.backbone.drop_path_rate = 0.0
    return cfg


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_validates_and_tests(path, shapes, tmp_path):
    cfg = load(path, shapes, tmp_path)
    runner = build_runner(cfg)
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    assert (tmp_path / 'epoch_1.pth').is_file()
    logged = runner.message_hub.get_scalar('train/loss').current()
    assert math.isfinite(logged)
    has_dp = any(hook['type'] == 'mmlavit.DiagonalityLossHook' for hook in cfg.custom_hooks)
    assert ('train/loss_dp' in runner.message_hub.log_scalars) == has_dp
    after = runner.model.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    metrics = runner.test()
    assert 0 <= metrics['accuracy/top1'] <= 100


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_weight_decay_skips_norms_biases_and_layer_scale(path, shapes, tmp_path):
    cfg = load(path, shapes, tmp_path)
    model = LaViT(**{k: v for k, v in cfg.model.backbone.items() if k != 'type'})
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decays = {id(g['params'][0]): g['weight_decay'] for g in wrapper.optimizer.param_groups}
    for name, param in model.named_parameters():
        exempt = 'norm' in name or name.endswith(('bias', 'layer_scale'))
        assert decays[id(param)] == (0 if exempt else 0.05), name


@pytest.mark.parametrize('path', IMAGENET, ids=lambda path: path.stem)
def test_imagenet_recipe(path):
    cfg = Config.fromfile(ROOT / path)
    assert cfg.train_cfg.max_epochs == 300
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs
    # a floor in absolute terms would lie above a learning rate that was scaled down
    assert all('eta_min' not in scheduler for scheduler in cfg.param_scheduler)


def test_upstream_train_tool_runs_a_config_from_another_directory(shapes, tmp_path):
    """mmpretrain's own tool finds the backbone, the hook and the data without further ado."""
    tool = Path(mmpretrain.__file__).parent / '.mim/tools/train.py'
    options = [
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=3',
        'default_hooks.logger.interval=1',
    ]
    for split in ('train', 'val'):
        options.append(f'{split}_dataloader.dataset.data_root={shapes / "classification"}')
    config = ROOT / 'configs/shapes/lavit-nano_shapes-cls.py'
    done = subprocess.run(
        [sys.executable, tool, config, '--work-dir', tmp_path / 'out', '--cfg-options', *options],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'Epoch(train) [1][2/2]' in done.stdout
    assert 'loss_dp' in done.stdout
    assert (tmp_path / 'out/epoch_1.pth').is_file()
