"""Refuse a checkpoint that does not belong to the model."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner, find_latest_checkpoint

from mmlavit.errors import UserError
from mmlavit.models.key_differences import check_belongs, check_overlaps
from mmlavit.registry import HOOKS

from .dataset_check_hook import unwrapped

__all__ = ['StrictLoadHook']


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Compare every checkpoint that the runner loads with the model, before it is copied.

    mmengine only warns of missing, unexpected and mismatched keys, and a model that is half
    initialised at random still yields metrics. To test and to resume, all keys must match; window
    transforms may differ in shape, since the backbone resizes them. Of what training starts from
    (``load_from``), something must fit.
    """

    # Ahead of EMAHook, which copies the state dict to the averaged model.
    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check the keys and shapes of a checkpoint.

        Raises:
            UserError: If the checkpoint does not belong to the model, or cannot be resumed from.
        """
        path = runner._load_from or find_latest_checkpoint(runner.work_dir)
        model = unwrapped(runner.model)
        if isinstance(runner._train_loop, BaseLoop) and not runner._resume:
            check_overlaps(checkpoint, model, path)
            return
        needed = {'epoch', 'iter', 'message_hub'}
        if runner._resume and not needed <= {*checkpoint, *checkpoint.get('meta', ())}:
            raise UserError(
                f'checkpoint {path!r} cannot be resumed: it holds {", ".join(checkpoint)}, and not '
                'the state of a run. Weights are a start, not a state: --cfg-options '
                f'load_from={path} starts from them'
            )
        if runner._resume and 'optimizer' not in checkpoint:
            runner.logger.warning(f'{path} holds no state of the optimizer, which starts afresh.')
        check_belongs(checkpoint, model, path)
