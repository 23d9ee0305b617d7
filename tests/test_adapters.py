"""What users put on layers, as hooks and wrappers, does what it does elsewhere."""

import copy

import pytest
import torch
from small_models import SIZES, make_backbone, make_model, outputs_and_gradients
from torch import nn

from mmlavit.engine.hooks import attach_diagonality_loss
from mmlavit.models import DiagonalityLoss, trace_layers


def hook_all(model):
    """Hooks of both directions on every module."""
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, args: None)
        module.register_forward_hook(lambda module, args, out: None)
        module.register_full_backward_hook(lambda module, grad, out: None)


HOOKS = {
    'everything': hook_all,
    'diagonality loss': lambda model: attach_diagonality_loss(model, DiagonalityLoss()),
    'trace': lambda model: trace_layers(model, lambda layer: None),
}


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('attach', HOOKS)
def test_hooks_observe_and_never_choose(attach, size):
    """Maps and gradients are equal bit by bit with and without, and so are predictions."""
    model, images = make_backbone(drop_path_rate=0.3), torch.randn(size, requires_grad=True)
    results = []
    for observe in (lambda model: None, HOOKS[attach]):
        observe(model)
        torch.manual_seed(0)
        trained = outputs_and_gradients(model.train(), images)
        with torch.no_grad():
            results.append([*trained, *model.eval()(images)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


class Doubled(nn.Module):
    """Stands where a layer was, owns it, and has no weights of its own, as an adapter."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


LAYERS = [
    *('embed.proj', 'residual.proj', 'attn.qkv', 'attn.v', 'attn.proj'),
    *('ffn.fc1', 'ffn.fc2', 'ffn.dwconv'),
]


@pytest.mark.parametrize('layer', LAYERS)
def test_a_wrapper_around_a_layer_is_called(layer):
    """Doubling a layer's output is doubling its weights, in training and in prediction."""
    model, images = make_model().double(), torch.randn(SIZES[1], dtype=torch.float64)
    wrapped, doubled = copy.deepcopy(model), copy.deepcopy(model)
    # a convolution behind which a GELU comes: double what reads it, but for its bias
    read_by = 'ffn.fc2' if layer == 'ffn.dwconv' else layer
    for name, module in model.named_modules():
        if name.endswith(layer):
            wrapped.set_submodule(name, Doubled(wrapped.get_submodule(name)))
        if name.endswith(read_by) and isinstance(module, nn.Linear | nn.Conv2d):
            for key, parameter in doubled.get_submodule(name).named_parameters():
                parameter.data *= 2 if read_by == layer or key == 'weight' else 1
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            before, expected = model(images), doubled(images)
            for got, wanted in zip(wrapped(images), expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    assert max((a - b).abs().max() for a, b in zip(before, expected, strict=True)) > 1e-4


def test_quantized_linear_layers_give_nearly_the_same_maps():
    """By torch itself, whose layers have methods where others have weights."""
    model, images = make_model(), torch.randn(SIZES[1])
    with pytest.warns(DeprecationWarning):
        small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with torch.no_grad():
        for got, wanted in zip(small(images), model(images), strict=True):
            assert 0 < (got - wanted).norm() < 0.1 * wanted.norm()


def test_channels_last_weights_give_the_same_maps():
    """As `model.to(memory_format=...)` makes them; maps stay contiguous, as RoIAlign needs them."""
    model, images = make_model(), torch.randn(SIZES[1])
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    assert model.stages[1].embed.proj.weight.is_contiguous(memory_format=torch.channels_last)
    maps = model(images.to(memory_format=torch.channels_last))
    for got, wanted in zip(maps, expected, strict=True):
        assert got.is_contiguous()
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
