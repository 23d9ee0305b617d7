"""Hooks."""

from .dataset_check_hook import DatasetCheckHook, add_dataset_check
from .diagonality_loss_hook import DiagonalityLossHook, attach_diagonality_loss
from .strict_load_hook import StrictLoadHook

__all__ = [
    'DatasetCheckHook',
    'DiagonalityLossHook',
    'StrictLoadHook',
    'add_dataset_check',
    'attach_diagonality_loss',
]
