"""The hook that logs what becomes of the attention."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, load_tool
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmlavit import config_path
from mmlavit.engine import DiagonalityHook
from mmlavit.errors import UserError

TRAIN = load_tool('train')
ENDS = ('diagonality', 'symmetry', 'entropy')


def write_config(shapes: Path, more: str) -> None:
    """Six iterations in run.py, with the hook at every third."""
    Path('run.py').write_text(
        f'_base_ = {config_path("lavit-nano_shapes-cls.py")!r}\n'
        "custom_hooks = [dict(type='mmlavit.DiagonalityHook', interval=3)]\n"
        'train_cfg = dict(max_epochs=2, val_interval=9)\n'
        f'data = dict(data_root={str(shapes / "classification")!r})\n'
        'train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,\n'
        '                        dataset=data)\n'
        'val_dataloader = dict(dataset=data)\n'
        'default_hooks = dict(logger=dict(interval=1))\n' + more
    )


@pytest.mark.parametrize('interval', [0, 1.5])
def test_interval_is_a_whole_number(interval: object) -> None:
    """The message names the value."""
    with pytest.raises(ValueError, match=f'interval={interval!r}: expected a whole number'):
        DiagonalityHook(interval=interval)


@pytest.mark.parametrize('with_cp', [False, True])
def test_hook_logs_scalars_in_a_real_run(
    empty_directory: Path, shapes: Path, with_cp: bool, capsys
):
    """Every 3rd of 6 iterations, to scalars.json and not into the log's lines."""
    write_config(shapes, f'model = dict(backbone=dict(with_cp={with_cp}))\n')
    TRAIN.main(['run.py', '--work-dir', 'run', '--no-validate'])
    (path,) = Path('run').rglob('scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    logged = [line for line in lines if any(key.startswith('attention/') for key in line)]
    assert [line.pop('step') for line in logged] == [3, 6]
    middle = ('saturation', 'theta_distance', 'psi_distance')
    names = {f'attention/stage{m}/{name}' for m in (2, 3) for name in middle}
    names |= {f'attention/stage{m}/{name}' for m in range(1, 5) for name in ENDS}
    weights = torch.load('run/epoch_2.pth', weights_only=False)['state_dict']
    for line in logged:
        assert set(line) == names
        assert all(np.isfinite(value) for value in line.values())
        assert all(0.5 < line[f'attention/stage{m}/saturation'] <= 1.0001 for m in (2, 3))
    for m in (2, 3):
        for name in ('theta', 'psi'):
            moved = weights[f'backbone.stages.{m - 1}.blocks.1.attn.{name}'].norm() / 7
            assert logged[1][f'attention/stage{m}/{name}_distance'] == pytest.approx(float(moved))
            assert moved > 0
    assert 'Epoch(train) [2][3/3]' in (printed := capsys.readouterr().out)
    assert 'attention/' not in printed.partition('Epoch(train)')[2]


@pytest.mark.parametrize('value', ['True', 'dict()'])
def test_a_compiled_model_is_refused(
    empty_directory: Path, shapes: Path, fails: Run, value: str
) -> None:
    """Before the first iteration."""
    write_config(shapes, f'compile = {value}\n')
    message = fails(TRAIN, 'run.py', '--work-dir', 'run', '--no-validate')
    assert 'DiagonalityHook does not see into a compiled model' in message
    assert not list(Path('run').glob('*.pth'))


class Trained(BaseModel):
    """A model without a LaViT."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        return {'loss': self.linear(inputs.float().view(-1, 1)).sum()}


class StandIn(Trained):
    """What tools such as mmpretrain's vis_scheduler.py run the hooks on: it computes nothing."""

    def train_step(self, data, optim_wrapper):
        return None


@pytest.mark.parametrize('hook', ['DiagonalityHook', 'DiagonalityLossHook'])
def test_only_training_needs_a_lavit(empty_directory: Path, hook: str) -> None:
    """A tool's stand-in for the model passes; a model that is trained is refused."""
    options = dict(
        train_dataloader=DataLoader([{'inputs': 1.0}] * 3),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type=f'mmlavit.{hook}')],
    )
    Runner(StandIn(), 'run', experiment_name='tool', **options).train()
    with pytest.raises(UserError, match='Trained has no'):
        Runner(Trained(), 'run', experiment_name='training', **options).train()
