"""Checkpoints that do not belong to the model."""

import pytest
import torch
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner
from torch import nn

from mmlavit.engine import StrictLoadHook
from mmlavit.errors import UserError
from mmlavit.models import LessAttention

pytestmark = pytest.mark.usefixtures('isolated')


class _TTAModel(BaseTTAModel):
    def merge_preds(self, data_samples_list: list) -> list:
        return data_samples_list


def load_strictly(model: nn.Module, checkpoint: object) -> None:
    """Load as a test does."""
    torch.save(checkpoint, 'some.pth')
    runner = Runner(model, 'work_dirs/strict', load_from='some.pth', log_level='ERROR')
    runner.register_hook(StrictLoadHook())
    runner.load_or_resume()


@pytest.mark.parametrize('wrap', ['none', 'tta', 'ddp'])
def test_strict_load_accepts_what_fits(wrap: str) -> None:
    """Other window sizes, wrappers' prefixes and bookkeeping buffers are no mismatch."""
    state = LessAttention(8, window=3).state_dict()
    state['data_preprocessor.mean'] = torch.zeros(3, 1, 1)
    state['proj.num_batches_tracked'] = torch.tensor(1)
    state['proj.bias'].fill_(3.0)
    model = LessAttention(8, window=2)
    model.test_step = None
    load_strictly(
        _TTAModel(model) if wrap == 'tta' else model,
        {f'module.{key}': value for key, value in state.items()}
        if wrap == 'ddp'
        else {'state_dict': state, 'ema_state_dict': {}},
    )
    assert (model.proj.bias == 3.0).all()


def test_strict_load_lists_what_does_not_fit() -> None:
    """Missing, unexpected and mismatched keys are listed with their counts; nothing is loaded."""
    state = {'weight': torch.ones(2, 3), 'head.weight': torch.ones(1)}
    model = nn.Linear(4, 2)
    before = model.weight.detach().clone()
    with pytest.raises(UserError) as error:
        load_strictly(model, {'state_dict': state})
    assert str(error.value).splitlines() == [
        'some.pth does not belong to this Linear:',
        '  missing from the file: 1: bias',
        '  not in the model: 1: head.weight',
        '  of another shape: 1: weight (2, 3) in the file, (2, 4) in the model',
    ]
    assert torch.equal(model.weight, before)
    with pytest.raises(UserError, match=r'some\.pth holds a list, expected a state dict'):
        load_strictly(model, [1])
