"""LaViT, its layers and its loss. Imports torch, mmengine and mmcv only."""

from .backbones import LaViT
from .layers import PAD_VALUE, AttentionResidual, LessAttention, VanillaAttention
from .losses import DiagonalityLoss, diagonality_loss

__all__ = [
    'PAD_VALUE',
    'AttentionResidual',
    'DiagonalityLoss',
    'LaViT',
    'LessAttention',
    'VanillaAttention',
    'diagonality_loss',
]
