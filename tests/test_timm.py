"""What users of timm call, with and without timm."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from safetensors.torch import save_file

import mmlavit


@torch.no_grad()
def test_intermediates_are_the_maps_that_the_norms_take() -> None:
    """Of a feature extractor of the same weights, which norms them; the last may be normed."""
    model = mmlavit.create_model('lavit_nano').eval()
    backbone = mmlavit.create_model('lavit_nano', features_only=True).eval()
    backbone.load_state_dict(model.backbone.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 96)
    final, maps = model.forward_intermediates(x)
    for i, (found, expected) in enumerate(zip(maps, backbone(x), strict=True)):
        normed = backbone.get_submodule(f'norm{i}')(found.permute(0, 2, 3, 1))
        torch.testing.assert_close(normed, expected)
    assert torch.equal(final, model.forward_features(x))
    last = model.forward_intermediates(x, 2, norm=True, intermediates_only=True)
    assert all(map(torch.equal, last, (maps[2], final)))
    stopped, found = model.forward_intermediates(x, [-3, 0], stop_early=True)
    assert all(map(torch.equal, (*found, stopped), (maps[0], maps[1], maps[1])))
    # timm stops at these, too
    for name, value in [('indices', 0), ('indices', [4]), ('output_fmt', 'NLC')]:
        with pytest.raises(ValueError, match=f'{name}='):
            model.forward_intermediates(x, **{name: value})


def test_gradient_checkpointing_can_be_turned_on_and_off() -> None:
    """It saves memory; that it changes no gradient is tested with ``with_cp``."""
    model, x, counts = mmlavit.create_model('lavit_nano'), torch.randn(1, 3, 64, 64), []
    for enable in (False, True, False):
        model.set_grad_checkpointing(enable)
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
            model(x)
        counts.append(len(saved))
    assert counts[0] == counts[2] > 2 * counts[1]


def test_parameters_that_do_not_decay_are_those_of_the_recipes() -> None:
    """What mmengine leaves out for the options that all recipes have."""
    model = mmlavit.create_model('lavit_nano')
    recipe = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)
    optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.1)
    cfg = dict(type='OptimWrapper', optimizer=optimizer, paramwise_cfg=recipe)
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    free = {id(p) for group in groups if group['weight_decay'] == 0 for p in group['params']}
    names = {name for name, p in model.named_parameters() if id(p) in free}
    assert model.no_weight_decay() == names


@pytest.mark.parametrize('features_only', [False, True])
def test_layers_of_timm_are_those_of_mmengine(features_only: bool) -> None:
    """The patterns rank parameters as ``get_layer_depth`` does, which mmpretrain's decay asks."""
    model = mmlavit.create_model('lavit_nano', features_only=features_only)
    groups = model.group_matcher()
    patterns = [(groups['stem'], None), *groups['blocks']]

    def rank(name: str) -> tuple[int, ...]:
        for i, (pattern, suffix) in enumerate(patterns):
            if match := re.match(pattern, name):
                return (min(i, 1), *map(int, match.groups()), *(suffix or ()))
        return (2,)

    names = [name for name, _ in model.named_parameters()]
    ranks = sorted({rank(name) for name in names})
    backbone, prefix = (model, '') if features_only else (model.backbone, 'backbone.')
    for name in names:
        assert ranks.index(rank(name)) == backbone.get_layer_depth(name, prefix)[0], name


def test_timm_builds_loads_and_decays(tmp_path: Path) -> None:
    """Where timm is installed: its factory, its layer decay and its data pipeline."""
    timm, optim = pytest.importorskip('timm'), pytest.importorskip('timm.optim')
    importlib.import_module('mmlavit.timm')
    assert set(mmlavit.list_models()) <= set(timm.list_models('lavit_*'))
    # as its train.py does, which always has a drop_rate
    options = dict(drop_rate=0.0, drop_path_rate=0.1)
    model = timm.create_model('lavit_nano', num_classes=3, **options)
    groups = optim.param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(p): group['lr_scale'] for group in groups for p in group['params']}
    rates = {name: scales[id(p)] for name, p in model.named_parameters()}
    depth = sum(model.backbone.arch.depths)
    assert rates['backbone.stages.0.embed.proj.weight'] == 0.5 ** (depth + 1)
    assert rates['backbone.stages.3.blocks.0.norm1.weight'] < rates['head.fc.weight'] == 1
    data = timm.data.resolve_model_data_config(model)
    assert (data['input_size'], data['crop_pct'], len(data['mean'])) == ((3, 224, 224), 0.875, 3)
    save_file(model.state_dict(), tmp_path / 'x.safetensors')
    path = str(tmp_path / 'x.safetensors')
    again = timm.create_model('lavit_nano', num_classes=3, checkpoint_path=path)
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)
    maps = timm.create_model('lavit_nano', features_only=True)(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == [32, 64, 128, 256]
