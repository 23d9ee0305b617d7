"""Mixed precision where mmengine's AmpOptimWrapper refuses to run: on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from torch import nn

from mmlavit.registry import OPTIM_WRAPPERS

from .float32_operators import float32_operators

__all__ = ['BFloat16OptimWrapper']


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Autocast to bfloat16, without loss scaling.

    bfloat16 has the exponent range of float32, so gradients need no scaling. A checkpoint moves
    between this class and ``AmpOptimWrapper`` in both directions: this class ignores the state
    of the loss scaler, and there it starts afresh. What cannot read bfloat16 stays in float32, see
    :func:`mmlavit.engine.optimizers.float32_operators.float32_operators`.

    Args:
        **kwargs: Passed to ``OptimWrapper``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        print_log('Autocast runs in bfloat16, without loss scaling.', 'current')

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward pass; gradients synchronise as ``OptimWrapper`` decides.

        Args:
            model: The training model.
        """
        with (
            super().optim_context(model),
            autocast(dtype=torch.bfloat16),
            float32_operators(model),
        ):
            yield
