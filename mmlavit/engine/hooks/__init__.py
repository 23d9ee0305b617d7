"""Hooks."""

from .checkpoint_hook import SafeCheckpointHook
from .dataset_check_hook import DatasetCheckHook, add_dataset_check
from .diagonality_hook import DiagonalityHook
from .diagonality_loss_hook import DiagonalityLossHook, attach_diagonality_loss
from .finite_loss_hook import FiniteLossHook
from .float32_operators_hook import Float32OperatorsHook
from .metrics_logger_hook import MetricsLoggerHook
from .preemption_hook import PreemptionHook
from .seed_hook import SeedHook
from .strict_load_hook import PartialLoadHook, StrictLoadHook

__all__ = [
    'DatasetCheckHook',
    'DiagonalityHook',
    'DiagonalityLossHook',
    'FiniteLossHook',
    'Float32OperatorsHook',
    'MetricsLoggerHook',
    'PartialLoadHook',
    'PreemptionHook',
    'SafeCheckpointHook',
    'SeedHook',
    'StrictLoadHook',
    'add_dataset_check',
    'attach_diagonality_loss',
]
