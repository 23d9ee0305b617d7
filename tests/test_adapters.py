"""What users put on layers, hooks, adapters, pruning, quantization, does what it does elsewhere."""

import copy

import pytest
import torch
from small_models import ARCH, SIZES, make_backbone, make_model, outputs_and_gradients
from torch import nn
from torch.nn.utils import prune

from mmlavit.engine.hooks import attach_diagonality_loss
from mmlavit.models import DiagonalityLoss, LaViT, LessAttention, trace_layers

sizes = pytest.mark.parametrize('size', SIZES, ids=str)


def hook_layers(model, *names):
    """Hooks of both directions on all modules of these names, or on all."""
    for name, module in model.named_modules():
        if not names or name.rpartition('.')[2] in names:
            module.register_forward_pre_hook(lambda module, args: None)
            module.register_forward_hook(lambda module, args, out: None)
            module.register_full_backward_hook(lambda module, grad, out: None)


HOOKS = {
    'attn': lambda model: hook_layers(model, 'attn'),
    'ffn': lambda model: hook_layers(model, 'ffn', 'fc1', 'dwconv', 'fc2'),
    'norms': lambda model: hook_layers(model, 'norm1', 'norm2', 'norm0', 'norm3'),
    'blocks': lambda model: hook_layers(model, '0', '1', '2'),
    'everything': hook_layers,
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
    change = max((a - b).abs().max() for a, b in zip(before, expected, strict=True))
    assert change > 1e-4


def test_pruning_the_residual_is_pruning_it():
    """A mask of zeros on its projection is a model without the guide."""
    model, plain = make_model(), LaViT(ARCH, attention_residual=False).eval()
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert all('residual' in key for key in missing.unexpected_keys)
    for stage in model.stages[1:]:
        prune.l1_unstructured(stage.residual.proj, 'weight', amount=1.0)
    images = torch.randn(SIZES[1])
    for got, wanted in zip(model(images), plain(images), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


class DoubledAttention(LessAttention):
    """An attention with a forward pass of its own."""

    def forward(self, *args):
        out, logits = super().forward(*args)
        return 2 * out, logits


def test_an_attention_with_its_own_forward_pass_is_called():
    model, images = make_model(), torch.randn(SIZES[1])
    own = copy.deepcopy(model)
    for part, replaced in zip(model.modules(), own.modules(), strict=True):
        if isinstance(part, LessAttention):
            part.proj.weight.data *= 2
            part.proj.bias.data *= 2
            replaced.__class__ = DoubledAttention
    with torch.no_grad():
        for got, wanted in zip(own(images), model(images), strict=True):
            torch.testing.assert_close(got, wanted)


def near(small, model, images, tolerance):
    with torch.no_grad():
        for got, wanted in zip(small(images), model(images), strict=True):
            assert not torch.equal(got, wanted)
            assert (got - wanted).norm() < tolerance * wanted.norm()


def test_dynamic_quantization():
    """Its layers have methods where others have weights."""
    model = make_model()
    with pytest.warns(DeprecationWarning):
        small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    near(small, model, torch.randn(SIZES[1]), 0.1)


def test_weights_of_eight_bits():
    quantization = pytest.importorskip('torchao.quantization')
    model = make_model()
    small = copy.deepcopy(model)
    quantization.quantize_(small, quantization.Int8WeightOnlyConfig())
    near(small, model, torch.randn(SIZES[1]), 0.1)


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
    for got, wanted in zip(
        model(images.to(memory_format=torch.channels_last)), expected, strict=True
    ):
        assert got.is_contiguous()
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
