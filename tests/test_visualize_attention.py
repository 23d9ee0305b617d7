"""The tool that draws attention maps."""

import json
from collections.abc import Callable
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
    'lavit-nano_shapes-cls.py': 'classification/val/circle',
    'mask-rcnn_lavit-nano_shapes.py': 'coco/val2017',
    'upernet_lavit-nano_shapes.py': 'ade20k/images/validation',
}
CLASSIFIER = next(iter(CONFIGS))


def save_model(name: str, config: str = CLASSIFIER, **backbone) -> list[str]:
    """Write a config and a checkpoint with random weights, and return their paths."""
    cfg = Config.fromfile(ROOT / 'configs/shapes' / config)
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.update(backbone)
    cfg.dump(f'{name}.py')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(('theta', 'psi')):
            torch.nn.init.normal_(parameter, std=0.1)
    meta = {'dataset_meta': {'classes': ('circle', 'square', 'triangle')}}
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, f'{name}.pth')
    return [f'{name}.py', f'{name}.pth']


@pytest.fixture
def draw(empty_directory: Path, shapes: Path) -> Callable[..., tuple[set[str], dict]]:
    """Run the tool on a Shapes image; names of the pictures and the numbers."""

    def call(model: list[str], *options: str, folder: str = CONFIGS[CLASSIFIER]):
        image = str(next((shapes / folder).iterdir()))
        TOOL.main([*model, image, '--out', 'out', '--device', 'cpu', *options])
        names = {path.stem for path in Path('out').glob('*.png')}
        return names, json.loads(Path('out/attention.json').read_text())

    return call


@pytest.mark.parametrize('config', CONFIGS)
def test_tool_serves_three_toolboxes(draw, config: str):
    """Figures of what was asked for, and numbers that agree with each other and the weights."""
    model = save_model('model', config)
    stages = (2, 3) if config == CLASSIFIER else (2,)  # figures take their time
    options = ('--points', '20,30', '--stages', *map(str, stages))
    found, numbers = draw(model, *options, folder=CONFIGS[config])
    names = {'diagonality', 'entropy', 'saturation', 'similarity', 'transforms'}
    names |= {f'{name}_stage{m}' for m in stages for name in ('transforms', 'attention_x20_y30')}
    assert found == names
    for path in Path('out').glob('*.png'):
        pixels = np.asarray(Image.open(path).convert('RGB'))
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    places = [place for m in stages for place in ((m, 1, 'VA'), (m, 2, 'LA'))]
    found = numbers['models']['LaViT']
    assert [(a['stage'], a['layer'], a['kind']) for a in found['layers']] == places
    weights = torch.load('model.pth')['state_dict']
    for layer in found['layers'][1::2]:
        key = f'backbone.stages.{layer["stage"] - 1}.blocks.1.attn.theta'
        assert layer['theta_distance'] == pytest.approx(float(weights[key].norm() / 7), rel=1e-4)
        matrix = found['similarity_by_stage'][str(layer['stage'])]
        assert matrix[0][1] == matrix[1][0] == layer['similarity_to_previous'] < 1
    (point,) = numbers['points']
    for layer in point['layers']:
        heads = np.array(layer['attention'])
        assert len(heads) == 2 * layer['stage'] - 2
        np.testing.assert_allclose(heads.sum((1, 2)), 1, atol=1e-4)
        left, top, right, bottom = layer['window']
        assert left <= 20 < right and top <= 30 < bottom


def test_two_models_side_by_side(draw):
    """Named by their kinds, or by their configs; a stage of one vanilla layer has fewer figures."""
    options = ('--stages', '1', '--points', '20,30', '--overwrite', '--compare')
    found, numbers = draw(save_model('model'), *options, *save_model('all', less_attention=False))
    assert found == {'diagonality', 'entropy', 'attention_x20_y30_stage1'}
    assert list(numbers['models']) == ['LaViT', 'all-VA']
    options = ('--stages', '3', *options[2:])
    found, numbers = draw(['model.py', 'model.pth'], *options, *save_model('other'))
    names = {'transforms', 'transforms_stage3', 'transforms_stage3_second'}
    assert {name for name in found if 'transforms' in name} == names
    assert list(numbers['models']) == ['model', 'other']


def test_what_cannot_be_used_is_named(empty_directory, shapes, fails):
    """In one message with exit code 2, and nothing is written."""
    image = str(next((shapes / CONFIGS[CLASSIFIER]).iterdir()))
    model, other = save_model('model'), save_model('other', less_attention=False)
    for (config, checkpoint, path, *options), message in [
        ((*model, image, '--points', '5'), "--points: '5' is no pixel, expected X,Y as 48,52"),
        ((*model, image, '--points', '96,5'), '--points 96,5 is outside of what the model sees'),
        ((*model, image, '--compare', 'no.py', 'no'), "config file 'no.py' does not exist"),
        ((*model, image, '--device', 'cuda:99'), "--device 'cuda:99' cannot be used"),
        ((*model, image, '--out', 'model.py'), "--out 'model.py' is a file"),
        ((*model, image, '--out', '.'), 'is not empty; --overwrite'),
        ((*model, 'model.py'), 'error: model.py: '),
        ((model[0], other[1], image), 'other.pth does not belong to this ImageClassifier'),
    ]:
        assert message in fails(TOOL, config, checkpoint, path, '--out', 'out', *options)
    assert not Path('out').exists()
