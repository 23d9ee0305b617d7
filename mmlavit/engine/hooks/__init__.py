"""Hooks, each of which a config names."""

from .dataset_check_hook import DatasetCheckHook
from .diagonality_hook import DiagonalityHook
from .diagonality_loss_hook import DiagonalityLossHook, attach_diagonality_loss
from .finite_loss_hook import FiniteLossHook
from .float32_operators_hook import Float32OperatorsHook
from .stop_hook import StopHook
from .strict_load_hook import StrictLoadHook

__all__ = [
    'DatasetCheckHook',
    'DiagonalityHook',
    'DiagonalityLossHook',
    'FiniteLossHook',
    'Float32OperatorsHook',
    'StopHook',
    'StrictLoadHook',
    'attach_diagonality_loss',
]
