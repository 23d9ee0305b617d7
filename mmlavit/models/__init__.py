"""LaViT, its layers and its loss. Imports torch and mmengine only."""

from .backbones import LaViT
from .layers import AttentionResidual, LessAttention, VanillaAttention
from .losses import DiagonalityLoss, diagonality_loss
from .trace import LayerTrace, trace_layers

__all__ = [
    'AttentionResidual',
    'DiagonalityLoss',
    'LaViT',
    'LayerTrace',
    'LessAttention',
    'VanillaAttention',
    'diagonality_loss',
    'trace_layers',
]
