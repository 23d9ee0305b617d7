"""What mmengine stores in a checkpoint is on the allow-list, and loads as it was."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, forget_runs, load_tool
from mmengine.logging import HistoryBuffer

from mmlavit.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures('isolated')

TRAIN = load_tool('train')

RUNS = {
    # Best score, nested metainfo, a scheduler that stores one of its methods.
    'cls': """
        train_dataloader = dict(dataset=dict(metainfo=dict(classes=['circle', 'square', 'triangle'],
                                                           extra=dict(depth=dict(of='two')))))
        default_hooks = dict(checkpoint=dict(type='CheckpointHook', save_best='accuracy/top1'))
        optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3))
        param_scheduler = [dict(type='OneCycleLR', eta_max=0.01, total_steps=8, by_epoch=False)]
    """,
    'det': """
        optim_wrapper = dict(optimizer=dict(momentum=0.9))
        param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2),
                           dict(type='MultiStepLR', milestones=[1], by_epoch=True)]
    """,
    'seg': """
        param_scheduler = [dict(type='PolyLR', eta_min=1e-4, end=4, by_epoch=False)]
    """,
}


def plain(value: Any) -> Any:
    """Something that can be compared, types included."""
    if isinstance(value, dict):
        return type(value), {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [plain(item) for item in value]
    if isinstance(value, HistoryBuffer):
        return 'history', [column.tolist() for column in value.data]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return type(value), str(value.dtype), value.tolist()
    return type(value), value


@pytest.mark.parametrize('task', RUNS)
def test_runs_of_every_toolbox_resume(task: str, run: Run) -> None:
    """What a run stores loads as data, equals what pickle reads, and continues the run."""
    lines = [line.strip() for line in RUNS[task].strip().splitlines()]
    Path(f'run_{task}.py').write_text('\n'.join([f"_base_ = '{task}.py'", *lines]))
    kind, limit, stop, end = (
        ('iter', 'max_iters', 2, 4) if task == 'seg' else ('epoch', 'max_epochs', 1, 2)
    )
    first, last = (f'work_dirs/run_{task}/{kind}_{step}.pth' for step in (stop, end))
    run(TRAIN, f'run_{task}.py')
    forget_runs()
    content = load_checkpoint(first)
    assert plain(content) == plain(torch.load(first, weights_only=False))
    assert {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers'} <= set(content)
    assert any(len(log.data[0]) for log in content['message_hub']['log_scalars'].values())
    output = run(
        TRAIN, f'run_{task}.py', '--resume', first, '--cfg-options', f'train_cfg.{limit}={end}'
    )
    assert 'resumed epoch: ' in output
    assert load_checkpoint(last)['meta'][kind] == end


def test_values_of_older_numpy_load() -> None:
    """Published checkpoints name numpy's modules as they were called before version 2."""
    values = {
        'score': np.float64(0.5),
        'count': np.int64(3),
        'palette': np.arange(6, dtype=np.uint8).reshape(2, 3),
        'names': np.array(['a', 'bc']),
        'history': HistoryBuffer([1.0, 2.0], [1, 1]),
        'CLASSES': ('a', 'b'),
        'part': slice(1, 2),
    }
    torch.save({'state_dict': {}, 'meta': values}, 'new.pth')
    with zipfile.ZipFile('new.pth') as source, zipfile.ZipFile('old.pth', 'w') as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith('data.pkl'):
                assert b'numpy._core.multiarray' in content
                content = content.replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
            target.writestr(name, content)
    for path in ('new.pth', 'old.pth'):
        assert plain(load_checkpoint(path)['meta']) == plain(values)
