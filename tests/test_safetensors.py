"""Files of safetensors, as create_model reads and tools/publish_model.py writes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load_tool
from safetensors.torch import save_file

import mmlavit
from mmlavit.checkpoints import load_checkpoint
from mmlavit.errors import UserError
from mmlavit.models import LaViT

pytestmark = pytest.mark.usefixtures('empty_directory')

PUBLISH = load_tool('publish_model')


def test_damaged_safetensors_are_named() -> None:
    """What is no such file, and what ends too early."""
    path = Path('x.safetensors')
    torch.save({}, path)
    with pytest.raises(UserError, match=r'x.safetensors. is damaged, or .* by safetensors'):
        mmlavit.create_model('lavit_nano', checkpoint_path=str(path))
    save_file(LaViT('nano').state_dict(), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r'x.safetensors. cannot be read: SafetensorError'):
        mmlavit.create_model('lavit_nano', checkpoint_path=str(path))


@pytest.mark.parametrize(
    'content', [{'meta': {'x': {1}}, 'state_dict': {'w': torch.ones(1)}}, {'state_dict': {'w': 1}}]
)
def test_safetensors_cannot_hold_anything(
    content: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Sets in meta and numbers in the weights, which a checkpoint may hold."""
    torch.save(content, 'x.pth')
    with pytest.raises(SystemExit) as stop:
        PUBLISH.main(['x.pth', '--out', 'x.safetensors'])
    assert stop.value.code == 2
    assert 'safetensors holds tensors and JSON only' in capsys.readouterr().err
    assert not Path('x.safetensors').exists()


def test_tied_weights_and_arrays_are_written_out() -> None:
    """safetensors itself refuses tensors that share memory, and JSON knows no arrays."""
    weight = torch.randn(4, 3).T
    state = {'a': weight, 'b': weight}
    torch.save({'meta': {'palette': np.eye(2)}, 'state_dict': state}, 'x.pth')
    PUBLISH.main(['x.pth', '--out', 'x.safetensors'])
    found = load_checkpoint('x.safetensors')
    assert found['meta'] == {'palette': [[1, 0], [0, 1]]}
    assert torch.equal(found['state_dict']['a'], weight)
    assert torch.equal(found['state_dict']['b'], weight)
