"""Small models whose every weight matters, for tests of more than one module."""

import torch
from torch import Tensor, nn

from mmlavit.models import LaViT, LayerTrace
from mmlavit.ops import Windows

# both kinds of attention, logits that are handed on and logits that are not, and a residual
ARCH = dict(channels=(16, 32, 32, 32), depths=(1, 2, 1, 1), va_layers=(1, 1, 1, 1), head_width=16)
# the same, and two layers of a kind behind each other
DEPTHS = (1, 3, 2, 1)
DEEPER_ARCH = dict(ARCH, depths=DEPTHS, va_layers=(1, 2, 1, 1))
# images whose maps fill windows and patches in the first two stages, and some that do not
SIZES = [(2, 3, 56, 112), (3, 3, 50, 75)]


def randomize(module: nn.Module) -> nn.Module:
    """Give every weight a value that matters; a fresh model's transforms are the identity."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    for module_ in module.modules():
        if isinstance(module_, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module_.running_mean, -0.5, 0.5)
            nn.init.uniform_(module_.running_var, 0.5, 2.0)
    return module.eval()


def make_model(**options) -> LaViT:
    """Random in every weight and bias: a bias of 0, the start value, hides that it is left out."""
    model = randomize(LaViT(ARCH, **options))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def make_backbone(**options) -> LaViT:
    """Small, with attention far from uniform and transforms far from the identity."""
    torch.manual_seed(0)
    backbone = LaViT(DEEPER_ARCH, **options).eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith('qkv.weight'):
            parameter.data *= 20
        if name.endswith(('theta', 'psi')):
            torch.nn.init.normal_(parameter, std=0.1)
    return backbone


def outputs_and_gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Maps, then the gradient of every parameter."""
    model.zero_grad()
    outs = model(images)
    # a plain sum of normalized maps would have no gradient
    loss = sum((o * torch.linspace(-1, 1, o.numel(), device=o.device).view_as(o)).sum()
               for o in outs)  # fmt: skip
    loss.backward()
    return [*outs, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def make_layer(logits: Tensor, windows: Windows, stage: int = 2, layer: int = 1) -> LayerTrace:
    """What a backbone would hand over of one layer."""
    return LayerTrace(stage, layer, 'VA', logits, windows)
