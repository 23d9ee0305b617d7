"""Layer-wise learning-rate decay in the three toolboxes."""

import subprocess
import sys

import pytest
from conftest import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils.dl_utils import is_norm
from torch import nn

from mmlavit.engine.optimizers.layer_decay import LayerDecayOptimWrapperConstructor
from mmlavit.models import LaViT

RATE, LR, DECAY = 0.5, 1e-3, 0.05
CONFIGS = ['lavit-nano_shapes-cls', 'mask-rcnn_lavit-nano_shapes', 'upernet_lavit-nano_shapes']
NUM_LAYERS = 8  # the first embedding, 1 + 2 + 2 + 1 blocks, what follows
DELTAS = {
    'detection/mask-rcnn_lavit-small_fpn_lld_ms-3x_coco': 'mask-rcnn_lavit-small_fpn_ms-3x_coco',
    'segmentation/lavit-small_upernet_lld_8xb2-160k_ade20k-512x512': (
        'lavit-small_upernet_8xb2-160k_ade20k-512x512'
    ),
}


def layer(name):
    """The layer of a parameter of nano, whose depths are 1, 2, 2, 1."""
    parts = name.split('.')
    if parts[:2] != ['backbone', 'stages']:
        return NUM_LAYERS - 1
    first = (1, 2, 4, 6)[int(parts[2])]
    if parts[3] == 'blocks':
        return first + int(parts[4])
    return first if parts[2] != '0' else 0


@pytest.fixture(scope='module', params=CONFIGS)
def built(request):
    """A model of each toolbox and the settings of each of its parameters."""
    cfg = Config.fromfile(ROOT / f'configs/shapes/{request.param}.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
            constructor='mmlavit.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(cfg.optim_wrapper.paramwise_cfg, layer_decay_rate=RATE),
        ),
    )
    groups = {id(group['params'][0]): group for group in wrapper.optimizer.param_groups}
    return model, groups


def test_rate_falls_by_one_factor_a_layer(built):
    """Each parameter learns at rate ** (layers - layer - 1) times the base learning rate."""
    model, groups = built
    assert len(groups) == sum(1 for p in model.parameters() if p.requires_grad)
    for name, param in model.named_parameters():
        scale = RATE ** (NUM_LAYERS - 1 - layer(name))
        assert groups[id(param)]['lr'] == pytest.approx(LR * scale), name
        assert groups[id(param)]['lr_scale'] == pytest.approx(scale), name


def test_weight_decay_exemptions_hold(built):
    """Norms, biases and vectors do not decay; weights, the less-attention transforms too, do."""
    model, groups = built
    norms = {id(p) for module in model.modules() if is_norm(module) for p in module.parameters()}
    for name, param in model.named_parameters():
        exempt = id(param) in norms or name.endswith('bias') or param.ndim == 1
        assert groups[id(param)]['weight_decay'] == (0 if exempt else DECAY), name


@pytest.fixture
def constructor():
    return LayerDecayOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0, weight_decay=0.1)),
        dict(layer_decay_rate=0.5),
    )


def test_frozen_parameters_are_left_out(constructor):
    """What does not learn has no settings."""
    model = nn.Module()
    model.backbone = LaViT('nano', frozen_stages=4)
    model.head = nn.Linear(1, 1)
    groups = constructor(model).optimizer.param_groups
    assert {id(p) for g in groups for p in g['params']} == set(map(id, model.head.parameters()))


def test_other_backbones_are_refused(constructor):
    """A backbone without layers ends in a message that names it."""
    model = nn.Module()
    model.backbone = nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r'neither Module nor its backbone \(Linear\)'):
        constructor(model)


def test_engine_needs_no_mmpretrain():
    """Users of mmdet or mmseg alone can import the hooks and run the tools."""
    code = "import sys; sys.modules['mmpretrain'] = None; import mmlavit.cli.launch"
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('path', DELTAS)
def test_delta_config_adds_the_decay_only(path):
    """The config is its base but for the constructor and the rate."""
    cfg = Config.fromfile(ROOT / f'configs/{path}.py')
    base = Config.fromfile(ROOT / f'configs/{path.split("/")[0]}/{DELTAS[path]}.py')
    wrapper = cfg.optim_wrapper
    assert wrapper.pop('constructor') == 'mmlavit.LayerDecayOptimWrapperConstructor'
    assert wrapper.paramwise_cfg.pop('layer_decay_rate') == 0.9
    assert cfg.to_dict() == base.to_dict()
