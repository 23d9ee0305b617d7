"""Short runs with hooks that do harm, in this process or started by a launcher."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, forget_runs, load_tool

from mmlavit.checkpoints import load_checkpoint

TRAIN = load_tool('train')
# 12 images, 3 a batch
ITERATIONS = 4
TESTS_ON_PATH = {**os.environ, 'PYTHONPATH': str(ROOT / 'tests')}


def write_config(name: str, *hooks: dict[str, Any], epochs: int = 2, **options: Any) -> str:
    """A config with an averaged model and seeded flips, and with hooks that do harm."""
    text = f"""
_base_ = 'cls.py'
custom_imports = dict(imports=['fault_hooks'])
train_cfg = dict(max_epochs={epochs})
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
                   dict(type='MultiStepLR', milestones=[1], by_epoch=True)]
custom_hooks = {[dict(type='EMAHook', momentum=0.1), *hooks]!r}
randomness = dict(seed=1)
env_cfg = dict(dist_cfg=dict(timeout=60))
"""
    text += ''.join(f'{key} = {value!r}\n' for key, value in options.items())
    Path(f'{name}.py').write_text(text)
    return f'{name}.py'


def stops(code: int, *argv: str) -> None:
    """Train in this process, which must end with a code."""
    forget_runs()
    with pytest.raises(SystemExit) as exit_info:
        TRAIN.main(argv)
    assert exit_info.value.code == code


def trains(*argv: str) -> None:
    forget_runs()
    TRAIN.main(argv)


def assert_same_end(found: str, expected: str) -> None:
    """Weights, averages, momenta and the history of the learning rate are equal bit by bit."""
    a, b = load_checkpoint(found), load_checkpoint(expected)
    assert a['meta']['iter'] == b['meta']['iter']
    for key in ('state_dict', 'ema_state_dict'):
        torch.testing.assert_close(dict(a[key]), dict(b[key]), rtol=0, atol=0)
    torch.testing.assert_close(a['optimizer']['state'], b['optimizer']['state'], rtol=0, atol=0)
    for key in ('train/lr', 'train/loss'):
        histories = [c['message_hub']['log_scalars'][key].data[0].tolist() for c in (a, b)]
        assert histories[0] == histories[1]
