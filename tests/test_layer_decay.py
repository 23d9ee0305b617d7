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

from mmlavit.models import LaViT

RATE, LR, DECAY = 0.5, 1e-3, 0.05
CONFIGS = ['lavit-nano_shapes-cls', 'mask-rcnn_lavit-nano_shapes', 'upernet_lavit-nano_shapes']
NUM_LAYERS = 8  # the first embedding, 1 + 2 + 2 + 1 blocks, what follows
BASES = {
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


def groups_of(model, **paramwise_cfg):
    """The optimizer's settings of each parameter."""
    wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
        constructor='mmlavit.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(paramwise_cfg, layer_decay_rate=RATE),
    )
    groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    return {id(parameter): group for group in groups for parameter in group['params']}


@pytest.mark.parametrize('name', CONFIGS)
def test_rates_fall_layer_by_layer_and_exemptions_from_weight_decay_hold(name):
    """Norms, biases and vectors do not decay; weights, the less-attention transforms too, do."""
    cfg = Config.fromfile(ROOT / f'configs/shapes/{name}.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    groups = groups_of(model, **cfg.optim_wrapper.paramwise_cfg)
    norms = {id(p) for module in model.modules() if is_norm(module) for p in module.parameters()}
    for name, param in model.named_parameters():
        group, scale = groups.pop(id(param)), RATE ** (NUM_LAYERS - 1 - layer(name))
        assert group['lr'] == pytest.approx(LR * scale), name
        assert group['lr_scale'] == pytest.approx(scale), name
        exempt = id(param) in norms or name.endswith('bias') or param.ndim == 1
        assert group['weight_decay'] == (0 if exempt else DECAY), name
    assert not groups


def test_frozen_parameters_are_left_out():
    model = nn.ModuleDict(dict(backbone=LaViT('nano', frozen_stages=4), head=nn.Linear(1, 1)))
    assert groups_of(model).keys() == {id(p) for p in model['head'].parameters()}


def test_backbones_without_layers_are_refused():
    with pytest.raises(TypeError, match=r'neither ModuleDict nor its backbone \(Linear\)'):
        groups_of(nn.ModuleDict(dict(backbone=nn.Linear(1, 1))))


def test_engine_needs_no_mmpretrain():
    """Users of mmdet or mmseg alone can import the hooks and run the tools."""
    code = "import sys; sys.modules['mmpretrain'] = None; import mmlavit.cli.launch"
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('path', BASES)
def test_a_config_adds_the_decay_only(path):
    cfg = Config.fromfile(ROOT / f'configs/{path}.py')
    base = Config.fromfile(ROOT / f'configs/{path.split("/")[0]}/{BASES[path]}.py')
    wrapper = cfg.optim_wrapper
    assert wrapper.pop('constructor') == 'mmlavit.LayerDecayOptimWrapperConstructor'
    assert wrapper.paramwise_cfg.pop('layer_decay_rate') == 0.9
    assert cfg.to_dict() == base.to_dict()
