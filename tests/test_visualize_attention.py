"""The tool that draws attention maps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, load_tool
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

TOOL = load_tool('visualize_attention')
CONFIGS = {
    'cls': ROOT / 'configs/shapes/lavit-nano_shapes-cls.py',
    'det': ROOT / 'configs/shapes/mask-rcnn_lavit-nano_shapes.py',
    'seg': ROOT / 'configs/shapes/upernet_lavit-nano_shapes.py',
}
IMAGES = {
    'cls': 'classification/val/circle',
    'det': 'coco/val2017',
    'seg': 'ade20k/images/validation',
}


def save_checkpoint(config: Path, path: str, **backbone) -> list[str]:
    """Write a checkpoint with random weights and return it with its config."""
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.update(backbone)
    cfg.dump(f'{path}.py')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith(('theta', 'psi')):
            torch.nn.init.normal_(parameter, std=0.1)
    classes = ('background', 'circle', 'square', 'triangle')[-3 - (cfg.default_scope == 'mmseg') :]
    meta = {'dataset_meta': {'classes': classes}}
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, f'{path}.pth')
    return [f'{path}.py', f'{path}.pth']


@pytest.mark.parametrize('task', CONFIGS)
def test_tool_serves_three_toolboxes(empty_directory: Path, shapes: Path, task: str):
    """Figures of what was asked for, and numbers that agree with each other and the checkpoint."""
    model = save_checkpoint(CONFIGS[task], 'model')
    image = next((shapes / IMAGES[task]).iterdir())
    options = ['--points', '20,30', '--stages', '2', '3']
    if task == 'cls':
        options += ['--compare', *save_checkpoint(CONFIGS[task], 'baseline', less_attention=False)]
    TOOL.main([*model, str(image), '--out', 'out', '--device', 'cpu', *options])
    names = {'diagonality', 'saturation', 'similarity', 'transforms'}
    names |= {f'{name}_stage{m}' for m in (2, 3) for name in ('transforms', 'attention_x20_y30')}
    assert {path.name for path in Path('out').iterdir()} == {
        'attention.json', *(f'{name}.png' for name in names)
    }  # fmt: skip
    for path in Path('out').glob('*.png'):
        pixels = np.asarray(Image.open(path).convert('RGB'))
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    numbers = json.loads(Path('out/attention.json').read_text())
    labels = ['LaViT', 'all-VA'] if task == 'cls' else ['LaViT']
    assert list(numbers['models']) == labels
    places = [(2, 1, 'VA'), (2, 2, 'LA'), (3, 1, 'VA'), (3, 2, 'LA')]
    layers = numbers['models']['LaViT']['layers']
    assert [(a['stage'], a['layer'], a['kind']) for a in layers] == places
    weights = torch.load('model.pth')['state_dict']
    for layer in layers[1::2]:
        key = f'backbone.stages.{layer["stage"] - 1}.blocks.1.attn.theta'
        assert layer['theta_distance'] == pytest.approx(float(weights[key].norm() / 7), rel=1e-4)
        matrix = numbers['models']['LaViT']['similarity_by_stage'][str(layer['stage'])]
        assert matrix[0][1] == matrix[1][0] == layer['similarity_to_previous'] < 1
    (point,) = numbers['points']
    assert (point['x'], point['y']) == (20, 30)
    for layer in point['layers']:
        heads = np.array(layer['attention'])
        assert len(heads) == 2 * layer['stage'] - 2
        np.testing.assert_allclose(heads.sum((1, 2)), 1, atol=1e-4)
        left, top, right, bottom = layer['window']
        assert left <= 20 < right and top <= 30 < bottom
    if task == 'cls':
        baseline = numbers['models']['all-VA']
        assert {layer['kind'] for layer in baseline['layers']} == {'VA'}
        assert not any('theta_distance' in layer for layer in baseline['layers'])


def test_two_models_with_less_attention(empty_directory: Path, shapes: Path):
    """Both have their transforms drawn; they go by the names of their configs."""
    model, other = (save_checkpoint(CONFIGS['cls'], name) for name in ('model', 'other'))
    image = next((shapes / IMAGES['cls']).iterdir())
    options = ['--stages', '3', '--points', '20,30', '--compare', *other]
    TOOL.main([*model, str(image), '--out', 'out', '--device', 'cpu', *options])
    names = {path.stem for path in Path('out').glob('transforms*.png')}
    assert names == {'transforms', 'transforms_stage3', 'transforms_stage3_second'}
    assert list(json.loads(Path('out/attention.json').read_text())['models']) == ['model', 'other']


def test_the_label_is_that_of_the_whole_model(empty_directory: Path, shapes: Path):
    """A LaViT is one, though the stage that is looked at has a vanilla layer only."""
    model = save_checkpoint(CONFIGS['cls'], 'model')
    baseline = save_checkpoint(CONFIGS['cls'], 'baseline', less_attention=False)
    image = next((shapes / IMAGES['cls']).iterdir())
    options = ['--stages', '1', '--points', '20,30', '--compare', *baseline]
    TOOL.main([*model, str(image), '--out', 'out', '--device', 'cpu', *options])
    numbers = json.loads(Path('out/attention.json').read_text())
    assert list(numbers['models']) == ['LaViT', 'all-VA']
    assert not list(Path('out').glob('transforms*'))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--points', '5'], "argument --points: '5' is no pixel, expected X,Y as 48,52"),
        (['--points', '96,5'], '--points 96,5 is outside of what the model sees: X from 0 to 95'),
        (['--stages', '5'], 'argument --stages: invalid choice: 5'),
        (['--compare', 'none.py', 'none.pth'], "config file 'none.py' does not exist"),
        (['--device', 'cuda:99'], "--device 'cuda:99' cannot be used"),
        (['--cfg-options', 'model.backbone.type=mmlavit.LaVit'], 'mmlavit.LaVit'),
        (['--cfg-options', 'model.backbone.arch=nanno'], "arch='nanno'"),
    ],
)
def test_user_errors(empty_directory: Path, shapes: Path, fails, options, message):
    """Bad input ends in one message and exit code 2, with nothing written."""
    model = save_checkpoint(CONFIGS['cls'], 'model')
    image = next((shapes / IMAGES['cls']).iterdir())
    assert message in fails(TOOL, *model, str(image), '--out', 'out', *options)
    assert not Path('out').exists()


def test_files_that_cannot_be_used(empty_directory: Path, shapes: Path, fails):
    """No image, a folder with results, and the checkpoint of another model are named."""
    model = save_checkpoint(CONFIGS['cls'], 'model')
    image = str(next((shapes / IMAGES['cls']).iterdir()))
    assert 'none.png: no such file' in fails(TOOL, *model, 'none.png', '--out', 'out')
    assert "--out 'model.py' is a file" in fails(TOOL, *model, image, '--out', 'model.py')
    assert 'is not empty; --overwrite' in fails(TOOL, *model, image, '--out', '.')
    other = save_checkpoint(CONFIGS['cls'], 'other', less_attention=False)
    message = fails(TOOL, model[0], other[1], image, '--out', 'out')
    assert 'other.pth does not belong to this ImageClassifier' in message
