"""Stops a run whose loss is no number any more."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from mmlavit.errors import UserError
from mmlavit.registry import HOOKS

from .agreement import fail_together

__all__ = ['FiniteLossHook']


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop in the iteration whose loss is infinite or not a number, before a checkpoint is written.

    The message names the iteration, the losses and the images of the batch. Every iteration is
    checked: mmengine's ``RuntimeInfoHook`` has waited for the losses already, so reading their sum
    again costs no wait for the GPU, and with several processes one all-reduce of 8 bytes makes all
    of them stop. Overflowing *gradients*, which the loss scaling of float16 provokes, do not
    matter. tools/train.py adds this hook.
    """

    # Ahead of EMAHook, LoggerHook and CheckpointHook.
    priority = 'HIGH'

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Check the loss.

        Args:
            runner: The runner that trains.
            batch_idx: Number of the batch in the epoch.
            data_batch: What the dataloader gave.
            outputs: The losses, and numbers of other kinds.

        Raises:
            UserError: If the loss of any process is not finite.
        """
        with fail_together():
            total = (outputs or {}).get('loss')
            if total is not None and not math.isfinite(_number(total)):
                raise UserError(_explain(runner, data_batch, outputs or {}))


def _explain(runner: Runner, data_batch: Any, outputs: dict[str, Any]) -> str:
    losses = {name: _number(value) for name, value in outputs.items() if 'loss' in name}
    listing = ', '.join(
        f'{name} = {value}' for name, value in losses.items() if not math.isfinite(value)
    )
    images = [f'\n  {name}' for name in _images(data_batch)]
    return (
        f'the loss of iteration {runner.iter + 1} (epoch {runner.epoch + 1}) is not finite: '
        f'{listing}. Checkpoints are as they were before. {len(images)} images in the batch:'
        f'{"".join(images)}'
    )


def _number(value: Any) -> float:
    return float(torch.as_tensor(value).detach().mean())


def _images(data: Any) -> Iterator[str]:
    """Ids and paths of the samples in a batch, whatever holds them."""
    if isinstance(data, BaseDataElement):
        found = data.metainfo
        number = next((found[key] for key in ('img_id', 'sample_idx') if key in found), None)
        path = found.get('img_path', 'a sample without img_path: see meta_keys of the pipeline')
        yield f'{path}' if number is None else f'{path} (id {number})'
    elif isinstance(data, dict):
        for value in data.values():
            yield from _images(value)
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _images(value)
