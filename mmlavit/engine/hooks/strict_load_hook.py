"""Refuse a checkpoint that does not belong to the model."""

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmlavit.errors import UserError
from mmlavit.models.key_differences import key_differences
from mmlavit.registry import HOOKS

__all__ = ['StrictLoadHook', 'check_belongs']


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


def check_belongs(checkpoint: Any, model: nn.Module, source: str) -> None:
    """Compare the keys and shapes of a checkpoint with those of a model.

    Args:
        checkpoint: What a file holds.
        model: The model that it should belong to.
        source: What the message calls the file.

    Raises:
        UserError: If the checkpoint does not belong to the model; the message names the file and
            the first keys of every kind.
    """
    if not isinstance(checkpoint, dict):
        raise UserError(f'{source} holds a {type(checkpoint).__name__}, expected a state dict')
    found = _compared(checkpoint.get('state_dict', checkpoint))
    differences = key_differences(found, _compared(model.state_dict()))
    if differences:
        raise UserError(
            f'{source} does not belong to this {type(model).__name__}:\n' + '\n'.join(differences)
        )


def _compared(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    state = {str(key).removeprefix('module.'): value for key, value in state_dict.items()}
    return {
        key: value
        for key, value in state.items()
        if not (key.startswith('data_preprocessor.') or key.endswith('.num_batches_tracked'))
    }
