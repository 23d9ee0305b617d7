"""Stops a run whose loss is no number any more."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from mmlavit.errors import UserError
from mmlavit.registry import HOOKS

__all__ = ['FiniteLossHook']


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop in the iteration whose loss is infinite or not a number, before a checkpoint is written.

    mmengine's ``RuntimeInfoHook`` has waited for the losses already, so reading their sum again
    costs no wait for the GPU. Overflowing *gradients*, which the loss scaling of float16 provokes,
    do not matter.
    """

    # Ahead of EMAHook, LoggerHook and CheckpointHook.
    priority = 'HIGH'

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Check the loss of all processes.

        Raises:
            UserError: If one is not finite; the message names iteration, losses and images.
        """
        losses = {
            name: torch.as_tensor(value).detach().float().mean()
            for name, value in (outputs or {}).items()
            if 'loss' in name
        }
        # What is no number in one process is none in the sum.
        total = losses.get('loss', torch.zeros(())).clone()
        all_reduce(total)
        if torch.isfinite(total):
            return
        wrong = [f'{name} = {value}' for name, value in losses.items() if not value.isfinite()]
        images = list(_images(data_batch))
        raise UserError(
            f'the loss of iteration {runner.iter + 1} (epoch {runner.epoch + 1}) is not finite: '
            f'{", ".join(wrong) or "in another process"}. Checkpoints are as they were before. '
            f'{len(images)} images in the batch:' + ''.join(f'\n  {name}' for name in images)
        )


def _images(data: Any) -> Iterator[str]:
    """Ids and paths of the samples in a batch, whatever holds them."""
    if isinstance(data, BaseDataElement):
        number = data.metainfo.get('img_id', data.metainfo.get('sample_idx'))
        path = data.metainfo.get('img_path', 'a sample without img_path among its meta_keys')
        yield path if number is None else f'{path} (id {number})'
    elif isinstance(data, dict | list | tuple):
        for value in data.values() if isinstance(data, dict) else data:
            yield from _images(value)
