"""Hooks, and the runner helpers that no upstream package has."""

from .bf16_optim_wrapper import BFloat16OptimWrapper
from .errors import UserError
from .hooks import DiagonalityLossHook, StrictLoadHook
from .portable_runner import PortableRunner

__all__ = [
    'BFloat16OptimWrapper',
    'DiagonalityLossHook',
    'PortableRunner',
    'StrictLoadHook',
    'UserError',
]
