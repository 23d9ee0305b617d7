"""The formulas of LaViT, as functions on maps ``(B, h, w, C)``, logits and windows.

Each is written once, plainly, as the definition. A kernel beside it may compute the same where that
pays: :class:`use` says which of the two runs, and :func:`explain` why.
"""

from .add_norm import add_norm
from .attention_residual import attention_residual
from .backends import Choice, explain, use
from .bands import in_bands
from .conv_gelu import conv_gelu
from .diagonality import diagonality
from .less_attention import less_attention
from .vanilla_attention import vanilla_attention
from .windows import Windows

__all__ = [
    'Choice',
    'Windows',
    'add_norm',
    'attention_residual',
    'conv_gelu',
    'diagonality',
    'explain',
    'in_bands',
    'less_attention',
    'use',
    'vanilla_attention',
]
