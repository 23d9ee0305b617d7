"""Refuse a checkpoint that does not belong to the model."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from mmlavit.models.key_differences import check_belongs
from mmlavit.registry import HOOKS

__all__ = ['StrictLoadHook']


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
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        check_belongs(checkpoint, model, runner._load_from)
