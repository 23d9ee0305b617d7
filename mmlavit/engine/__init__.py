"""Hooks, loops and a runner that no upstream has, each of which a config names."""

from mmlavit import check_installed

# Before the imports that need it, so that a missing mmcv is explained, too.
check_installed('mmcv')

from .hooks import (  # noqa: E402
    DatasetCheckHook,
    DiagonalityHook,
    DiagonalityLossHook,
    FiniteLossHook,
    Float32OperatorsHook,
    StopHook,
    StrictLoadHook,
)
from .loops import ResumableEpochLoop, ResumableIterLoop  # noqa: E402
from .portable_runner import PortableRunner  # noqa: E402

__all__ = [
    'DatasetCheckHook',
    'DiagonalityHook',
    'DiagonalityLossHook',
    'FiniteLossHook',
    'Float32OperatorsHook',
    'PortableRunner',
    'ResumableEpochLoop',
    'ResumableIterLoop',
    'StopHook',
    'StrictLoadHook',
]
