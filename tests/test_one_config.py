"""The config says what runs: upstream's own tools give the run that ours give."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Run, forget_runs, load_tool
from mmengine.config import Config

from mmlavit.checkpoints import load_checkpoint

TRAIN = load_tool('train')

pytestmark = pytest.mark.usefixtures('isolated')


def options(layout: str, step: str) -> list[str]:
    result = ['model.backbone.init_cfg=None', step, 'default_hooks.logger.interval=1']
    for split in ('train', 'val', 'test'):
        result.append(f'{split}_dataloader.dataset.data_root=shapes/{layout}')
    if layout == 'coco':
        annotations = 'shapes/coco/annotations/instances_val2017.json'
        result += [f'{split}_evaluator.ann_file={annotations}' for split in ('val', 'test')]
    return [*result, 'train_dataloader.batch_size=2']


def outcome(work_dir: str) -> dict[str, Any]:
    """Losses and metrics of each step, the hooks in their order, and the last checkpoint."""
    (scalars,) = Path(work_dir).glob('*/vis_data/scalars.json')
    (log,) = Path(work_dir).glob('*/*.log')
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    (dumped,) = Path(work_dir).glob('*.py')
    last = Path(work_dir, 'last_checkpoint').read_text()
    config = Config.fromfile(dumped).to_dict()
    return {
        'scalars': [{k: v for k, v in line.items() if 'time' not in k} for line in lines],
        'hooks': re.findall(r'^\(\w+ *\) .*Hook.*$|^\w+:$', log.read_text(), re.MULTILINE),
        'config': {key: value for key, value in config.items() if key != 'work_dir'},
        'checkpoint': Path(last).name,
        'weights': load_checkpoint(last)['state_dict'],
    }


@pytest.mark.parametrize(
    ('toolbox', 'config', 'layout', 'step'),
    [
        ('mmpretrain', 'lavit-nano_shapes-cls', 'classification', 'train_cfg.max_epochs=1'),
        ('mmdet', 'mask-rcnn_lavit-nano_shapes', 'coco', 'train_cfg.max_epochs=1'),
        ('mmseg', 'upernet_lavit-nano_shapes', 'ade20k', 'train_cfg.max_iters=2'),
    ],
)
def test_upstreams_tool_gives_the_same_run(
    toolbox: str, config: str, layout: str, step: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are equal bit by bit, and so are hooks, dumped configs and checkpoints."""
    argv = [str(ROOT / f'configs/shapes/{config}.py'), '--cfg-options', *options(layout, step)]
    if toolbox == 'mmseg':
        argv.append('default_hooks.checkpoint.interval=2')
    run(TRAIN, *argv, '--work-dir', f'ours/{toolbox}')
    forget_runs()
    package = Path(str(importlib.import_module(toolbox).__file__)).parent
    script = str(package / '.mim/tools/train.py')
    monkeypatch.setattr(sys, 'argv', [script, *argv, '--work-dir', f'theirs/{toolbox}'])
    runpy.run_path(script, run_name='__main__')
    ours, theirs = outcome(f'ours/{toolbox}'), outcome(f'theirs/{toolbox}')
    assert ours['scalars'] and ours['hooks']
    torch.testing.assert_close(ours.pop('weights'), theirs.pop('weights'), rtol=0, atol=0)
    assert ours == theirs
