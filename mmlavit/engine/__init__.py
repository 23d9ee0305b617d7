"""Hooks, and the runner helpers that no upstream package has."""

from .hooks import (
    DatasetCheckHook,
    DiagonalityHook,
    DiagonalityLossHook,
    FiniteLossHook,
    Float32OperatorsHook,
    MetricsLoggerHook,
    PartialLoadHook,
    PreemptionHook,
    SafeCheckpointHook,
    SeedHook,
    StrictLoadHook,
    add_dataset_check,
    add_float32_operators,
)
from .optimizers.bf16_optim_wrapper import BFloat16OptimWrapper
from .runner.portable_runner import PortableRunner

__all__ = [
    'BFloat16OptimWrapper',
    'DatasetCheckHook',
    'DiagonalityHook',
    'DiagonalityLossHook',
    'FiniteLossHook',
    'Float32OperatorsHook',
    'MetricsLoggerHook',
    'PartialLoadHook',
    'PortableRunner',
    'PreemptionHook',
    'SafeCheckpointHook',
    'SeedHook',
    'StrictLoadHook',
    'add_dataset_check',
    'add_float32_operators',
]
