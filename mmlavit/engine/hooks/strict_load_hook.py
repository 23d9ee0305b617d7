"""Refuse a checkpoint that does not belong to the model, or of which nothing does."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmlavit.models.key_differences import check_belongs, check_overlaps
from mmlavit.registry import HOOKS

__all__ = ['PartialLoadHook', 'StrictLoadHook']


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Compare every checkpoint that the runner loads with the model, before it is copied.

    mmengine only warns of missing, unexpected and mismatched keys, and a model that is half
    initialised at random still yields metrics. Window transforms may differ in shape, since the
    backbone resizes them; batch norm's ``num_batches_tracked`` and the data preprocessor are not
    compared.
    """

    # Ahead of EMAHook, which copies the state dict to the averaged model.
    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check the keys and shapes of a checkpoint.

        Args:
            runner: The runner that loads the checkpoint.
            checkpoint: What the file holds.

        Raises:
            UserError: If the checkpoint does not belong to the model; the message names the file
                and the first keys of every kind.
        """
        check_belongs(checkpoint, _unwrapped(runner.model), runner._load_from)


@HOOKS.register_module()
class PartialLoadHook(Hook):
    """Refuse a checkpoint of which nothing fits the model.

    mmengine loads what fits of ``load_from`` and warns of the rest, also where the rest is all, and
    the run starts from random weights.
    """

    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check the keys and shapes of a checkpoint.

        Args:
            runner: The runner that loads the checkpoint.
            checkpoint: What the file holds.

        Raises:
            UserError: If no tensor fits the model; the message names the file and the first keys.
        """
        check_overlaps(checkpoint, _unwrapped(runner.model), runner._load_from)


def _unwrapped(model: Any) -> nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
