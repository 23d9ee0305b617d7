"""LaViT, its layers and its loss. Imports torch, mmengine and mmcv only."""

from .backbones import LaViT
from .layers import AttentionResidual, LessAttention, VanillaAttention
from .losses import DiagonalityLoss, diagonality_loss

__all__ = [
    'AttentionResidual',
    'DiagonalityLoss',
    'LaViT',
    'LessAttention',
    'VanillaAttention',
    'diagonality_loss',
]
