"""Hooks, and the runner helpers that no upstream package has."""

from mmlavit.errors import UserError

from .bf16_optim_wrapper import BFloat16OptimWrapper
from .hooks import DatasetCheckHook, DiagonalityLossHook, StrictLoadHook, add_dataset_check
from .portable_runner import PortableRunner

__all__ = [
    'BFloat16OptimWrapper',
    'DatasetCheckHook',
    'DiagonalityLossHook',
    'PortableRunner',
    'StrictLoadHook',
    'UserError',
    'add_dataset_check',
]
