"""What users put on layers, hooks, adapters, quantization, does what it does elsewhere."""

import copy

import pytest
import torch
from small_models import ARCH, SIZES, make_backbone, make_model, outputs_and_gradients
from torch import nn

from mmlavit.engine.hooks import attach_diagonality_loss
from mmlavit.models import DiagonalityLoss, LaViT, trace_layers

sizes = pytest.mark.parametrize('size', SIZES, ids=str)


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


@sizes
@pytest.mark.parametrize('attach', HOOKS)
def test_hooks_observe_and_never_choose(attach, size):
    """Maps and gradients are equal bit by bit with and without, and so are predictions."""
    model, images = make_backbone(drop_path_rate=0.3), torch.randn(size, requires_grad=True)
    results = []
    for hooked in (False, True):
        if hooked:
            HOOKS[attach](model)
        torch.manual_seed(0)
        trained = outputs_and_gradients(model.train(), images)
        with torch.no_grad():
            results.append([*trained, *model.eval()(images)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@sizes
def test_every_layer_is_called_once(size):
    """Nothing reads the weights of a module past it: offloading and sharding depend on that."""
    model, calls = LaViT(ARCH), {}
    for name, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            calls[name] = 0

            def count(module, args, name=name):
                calls[name] += 1

            module.register_forward_pre_hook(count)
    model(torch.randn(size))
    assert len(calls) > 40
    assert set(calls.values()) == {1}


class Doubled(nn.Module):
    """Stands where a layer was, owns it, and has no weights of its own, as adapters have none."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


LAYERS = {
    'embed.proj': 'embed.proj',
    'residual.proj': 'residual.proj',
    'attn.qkv': 'attn.qkv',
    'attn.v': 'attn.v',
    'attn.proj': 'attn.proj',
    'ffn.fc1': 'ffn.fc1',
    'ffn.fc2': 'ffn.fc2',
    'ffn.dwconv': 'ffn.fc2',  # behind a GELU: double what reads it
}


@pytest.mark.parametrize('layer', LAYERS)
def test_a_wrapper_around_a_layer_is_called(layer):
    """Doubling a layer's output is doubling its weights, in training and in prediction."""
    model, images = make_model().double(), torch.randn(SIZES[1], dtype=torch.float64)
    wrapped, doubled = copy.deepcopy(model), copy.deepcopy(model)
    for name, module in model.named_modules():
        if name.endswith(layer):
            wrapped.set_submodule(name, Doubled(wrapped.get_submodule(name)))
        if name.endswith(LAYERS[layer]) and isinstance(module, nn.Linear | nn.Conv2d):
            target = doubled.get_submodule(name)
            target.weight.data *= 2
            if target.bias is not None and layer != 'ffn.dwconv':
                target.bias.data *= 2
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            before, expected = model(images), doubled(images)
            for got, wanted in zip(wrapped(images), expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    assert max((a - b).abs().max() for a, b in zip(before, expected, strict=True)) > 1e-4


def quantize(model):
    """Layers of torch that have methods where others have weights."""
    with pytest.warns(DeprecationWarning):
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def quantize_by_torchao(model):
    """Weights that are tensors of eight bits."""
    quantization, small = pytest.importorskip('torchao.quantization'), copy.deepcopy(model)
    quantization.quantize_(small, quantization.Int8WeightOnlyConfig())
    return small


@pytest.mark.parametrize('method', [quantize, quantize_by_torchao])
def test_quantized_linear_layers_give_nearly_the_same_maps(method):
    model, images = make_model(), torch.randn(SIZES[1])
    with torch.no_grad():
        for got, wanted in zip(method(model)(images), model(images), strict=True):
            assert not torch.equal(got, wanted)
            assert (got - wanted).norm() < 0.1 * wanted.norm()


def test_low_rank_adapters_train_on_every_layer():
    """Also on the residual's 1x1 convolution, whose weight 0.1.0 read past the module."""
    peft = pytest.importorskip('peft')
    model, images = make_model(), torch.randn(SIZES[1])
    before = [m.detach() for m in model(images)]
    config = peft.LoraConfig(r=2, target_modules=['qkv', 'v', 'proj', 'fc1', 'fc2'])
    adapted = peft.get_peft_model(model, config)
    for got, wanted in zip(adapted(images), before, strict=True):
        torch.testing.assert_close(got, wanted)
    # the second factor starts at zero
    second = {n: p for n, p in adapted.named_parameters() if 'lora_B' in n}
    assert any('residual.proj' in name for name in second)
    sum((m * torch.randn_like(m)).sum() for m in adapted(images)).backward()
    assert [name for name, p in second.items() if p.grad is None or not p.grad.any()] == []


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
