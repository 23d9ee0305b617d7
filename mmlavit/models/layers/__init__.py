"""Building blocks of LaViT, one public idea a file."""

from .attention import LessAttention, VanillaAttention, is_window_transform
from .attention_residual import AttentionResidual
from .block import Block
from .embedding import PatchEmbed
from .ffn import ConvFFN
from .resize import resize_transform
from .stage import Stage
from .windows import merge, partition, real_tokens

__all__ = [
    'AttentionResidual',
    'Block',
    'ConvFFN',
    'LessAttention',
    'PatchEmbed',
    'Stage',
    'VanillaAttention',
    'is_window_transform',
    'merge',
    'partition',
    'real_tokens',
    'resize_transform',
]
