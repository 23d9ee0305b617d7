"""Building blocks of LaViT, one public idea a file."""

from .attention import LessAttention, VanillaAttention
from .attention_residual import AttentionResidual
from .block import Block
from .drop_path import DropPath
from .embedding import PatchEmbed
from .ffn import ConvFFN, ConvGELU
from .norm import AddNorm, Norm, OutputNorm
from .resize import resize_transform
from .stage import Stage

__all__ = [
    'AddNorm',
    'AttentionResidual',
    'Block',
    'ConvFFN',
    'ConvGELU',
    'DropPath',
    'LessAttention',
    'Norm',
    'OutputNorm',
    'PatchEmbed',
    'Stage',
    'VanillaAttention',
    'resize_transform',
]
