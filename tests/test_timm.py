"""What users of timm call, with and without timm."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from safetensors.torch import save_file

import mmlavit


def test_intermediates_are_the_maps_that_the_norms_take() -> None:
    """Of a feature extractor of the same weights, which norms them; the last may be normed."""
    model = mmlavit.create_model('lavit_nano').eval()
    backbone = mmlavit.create_model('lavit_nano', features_only=True).eval()
    backbone.load_state_dict(model.backbone.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        for i, (found, expected) in enumerate(zip(maps, backbone(x), strict=True)):
            normed = backbone.get_submodule(f'norm{i}')(found.permute(0, 2, 3, 1))
            torch.testing.assert_close(normed, expected)
        assert torch.equal(final, model.forward_features(x))
        last, normed = model.forward_intermediates(x, 2, norm=True, intermediates_only=True)
        assert torch.equal(last, maps[2])
        assert torch.equal(normed, final)
        stopped, found = model.forward_intermediates(x, [-3, 0], stop_early=True)
        assert torch.equal(found[0], maps[0])
        assert torch.equal(found[1], maps[1])
        assert torch.equal(stopped, maps[1])


@pytest.mark.parametrize(
    'options', [{'indices': 0}, {'indices': 5}, {'indices': [4]}, {'output_fmt': 'NLC'}], ids=str
)
def test_intermediates_that_there_are_not(options: dict) -> None:
    """timm stops at these, too."""
    model = mmlavit.create_model('lavit_nano')
    with pytest.raises(ValueError, match=f'{next(iter(options))}='):
        model.forward_intermediates(torch.randn(1, 3, 32, 32), **options)


def test_gradient_checkpointing_saves_memory_and_changes_no_gradient() -> None:
    """It can be turned on and off after the model is built."""
    model = mmlavit.create_model('lavit_nano', num_classes=2)
    x = torch.randn(1, 3, 64, 64)
    counts, gradients = [], []
    for enable in (False, True, False):
        model.set_grad_checkpointing(enable)
        saved: list[torch.Size] = []
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.shape) or t, lambda t: t
        ):
            loss = model(x).square().sum()
        counts.append(len(saved))
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert counts[0] == counts[2] > 2 * counts[1]
    for one, other in zip(gradients[0], gradients[1], strict=True):
        torch.testing.assert_close(one, other)


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
    patterns = model.group_matcher()
    ordered = [(patterns['stem'], None, 0)] + [(*pair, 1) for pair in patterns['blocks']]

    def rank(name: str) -> tuple[int, ...]:
        for pattern, suffix, ordinal in ordered:
            match = re.match(pattern, name)
            if match:
                return (ordinal, *map(int, match.groups()), *(suffix or ()))
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
    model = timm.create_model('lavit_nano', num_classes=3, drop_path_rate=0.1)
    groups = optim.param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(p): group['lr_scale'] for group in groups for p in group['params']}
    rates = {name: scales[id(p)] for name, p in model.named_parameters()}
    depth = sum(model.backbone.arch.depths)
    assert rates['backbone.stages.0.embed.proj.weight'] == 0.5 ** (depth + 1)
    assert rates['backbone.stages.3.blocks.0.norm1.weight'] < rates['head.fc.weight'] == 1
    assert timm.data.resolve_model_data_config(model)['crop_pct'] == 0.875
    save_file(model.state_dict(), tmp_path / 'x.safetensors')
    path = str(tmp_path / 'x.safetensors')
    again = timm.create_model('lavit_nano', num_classes=3, checkpoint_path=path)
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)
    maps = timm.create_model('lavit_nano', features_only=True)(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == [32, 64, 128, 256]
