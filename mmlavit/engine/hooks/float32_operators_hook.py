"""Validate and test in bfloat16 what mmcv's operators and the metrics can read in float32 only."""

from contextlib import ExitStack
from typing import Any

from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmlavit.registry import HOOKS

from ..optimizers.float32_operators import float32_operators

__all__ = ['Float32OperatorsHook', 'add_float32_operators']


@HOOKS.register_module()
class Float32OperatorsHook(Hook):
    """Let ``fp16=True`` of val_cfg and test_cfg work without a GPU, where mmengine uses bfloat16.

    :func:`mmlavit.engine.optimizers.float32_operators.float32_operators` keeps the rest in float32.
    """

    def __init__(self) -> None:
        self._context = ExitStack()

    def before_val(self, runner: Runner) -> None:
        """Switch the operators to float32.

        Args:
            runner: The runner that validates or tests.
        """
        self._context.enter_context(float32_operators(runner.model))

    def after_val(self, runner: Runner) -> None:
        """Switch them back.

        Args:
            runner: The runner that validated or tested.
        """
        self._context.close()

    before_test = before_val
    after_test = after_val


def add_float32_operators(runner: Runner, loop_cfg: dict[str, Any] | None) -> None:
    """Register a :class:`Float32OperatorsHook` where a loop needs it.

    Args:
        runner: The runner.
        loop_cfg: The config's ``val_cfg`` or ``test_cfg``.
    """
    if (loop_cfg or {}).get('fp16') and get_device() == 'cpu':
        runner.logger.info('Autocast runs in bfloat16.')
        runner.register_hook(Float32OperatorsHook())
