"""The kernels by the names of the formulas; this imports Triton."""

from .add_norm import add_norm
from .attention_residual import attention_residual
from .conv_gelu import conv_gelu
from .diagonality import diagonality
from .less_attention import less_attention
from .vanilla_attention import vanilla_attention

__all__ = [
    'add_norm',
    'attention_residual',
    'conv_gelu',
    'diagonality',
    'less_attention',
    'vanilla_attention',
]
