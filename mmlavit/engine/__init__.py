"""Hooks, and the runner helpers that no upstream package has."""

from mmlavit import check_installed

# Before the imports that need it, so that a missing mmcv is explained, too.
check_installed('mmcv')

from .hooks import (  # noqa: E402
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
)
from .runner.portable_runner import PortableRunner  # noqa: E402

__all__ = [
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
]
