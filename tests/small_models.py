"""Small models whose every weight matters, for tests of more than one module."""

import torch
from torch import nn

from mmlavit.models import LaViT
from mmlavit.visualization.attention_maps import LayerAttention

# both kinds of attention, logits that are handed on and logits that are not, and a residual
ARCH = dict(channels=(16, 32, 32, 32), depths=(1, 2, 1, 1), va_layers=(1, 1, 1, 1), head_width=16)
# the same, and two layers of a kind behind each other
DEPTHS = (1, 3, 2, 1)
DEEPER_ARCH = dict(ARCH, depths=DEPTHS, va_layers=(1, 2, 1, 1))


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


def make_layer(attention, mask=None, stage=2, layer=1, size=(7, 7)) -> LayerAttention:
    """Attention maps as a backbone would give them."""
    return LayerAttention(stage, layer, 'VA', attention, mask, size)
