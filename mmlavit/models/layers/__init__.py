"""Building blocks of LaViT, one public idea a file."""

from .attention import FusedVanillaAttention, LessAttention, VanillaAttention, is_window_transform
from .attention_residual import AttentionResidual
from .block import Block
from .channels_first import channels_first
from .embedding import PatchEmbed
from .ffn import ConvFFN
from .padding import PAD_VALUE, real_pixels
from .resize import resize_transform
from .stage import Stage
from .windows import merge, partition, window_mask

__all__ = [
    'PAD_VALUE',
    'AttentionResidual',
    'Block',
    'ConvFFN',
    'FusedVanillaAttention',
    'LessAttention',
    'PatchEmbed',
    'Stage',
    'VanillaAttention',
    'channels_first',
    'is_window_transform',
    'merge',
    'partition',
    'real_pixels',
    'resize_transform',
    'window_mask',
]
