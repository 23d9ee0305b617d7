"""Writes a checkpoint when a run is asked to stop."""

import signal
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.fileio import join_path
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import Runner

from mmlavit.registry import HOOKS

from .agreement import fail_together, largest
from .checkpoint_hook import write_last_checkpoint
from .stop_signals import StopSignals

__all__ = ['PreemptionHook']

FILENAME = 'interrupted.pth'


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Obey SIGTERM and Ctrl-C after the running iteration, with a checkpoint to resume from.

    The checkpoint is ``interrupted.pth`` beside the others, and the process ends with code 128 plus
    the number of the signal. All processes of a run stop after the same iteration, whichever got
    the signal; that takes one all-reduce of 8 bytes in each. With gradient accumulation they stop
    when the gradients have been used. A validation is cut short and not repeated. tools/train.py
    adds this hook.
    """

    # After the schedulers have stepped, instead of a regular checkpoint of the same iteration.
    priority = 80

    def __init__(self) -> None:
        self.signals = StopSignals()
        self._num_val_batches = 0

    def before_train(self, runner: Runner) -> None:
        """Start to catch the signals.

        Args:
            runner: The runner that trains.
        """
        self.signals.catch()
        self.signals.shield(runner.train_dataloader)
        if runner.val_loop is not None:
            self.signals.shield(runner.val_dataloader)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stop if asked to.

        Args:
            runner: The runner that trains.
            batch_idx: Number of the batch in the epoch.
            data_batch: What the dataloader gave.
            outputs: The losses.

        Raises:
            SystemExit: If a signal was caught.
        """
        number = largest(self.signals.received)
        done = runner.iter + 1
        accumulated = done % getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if number and not accumulated:
            self._stop(runner, number, done)

    def before_val(self, runner: Runner) -> None:
        """Find out how many batches every process has.

        Args:
            runner: The runner that validates.
        """
        length = torch.tensor(len(runner.val_dataloader))
        all_reduce(length, op='min')
        self._num_val_batches = int(length)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stop if asked to.

        Args:
            runner: The runner that validates.
            batch_idx: Number of the batch.
            data_batch: What the dataloader gave.
            outputs: The predictions.

        Raises:
            SystemExit: If a signal was caught.
        """
        number = largest(self.signals.received) if batch_idx < self._num_val_batches else 0
        if number:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    # The model has the averaged weights while it is validated.
                    hook.after_val_epoch(runner)
            self._stop(runner, number, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Leave the signals alone again.

        Args:
            runner: The runner that has trained.
        """
        self.signals.release()

    def _stop(self, runner: Runner, number: int, iteration: int) -> NoReturn:
        saver = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        out_dir = runner.work_dir if saver is None else saver.out_dir
        backend_args = None if saver is None else saver.backend_args
        path = join_path(out_dir, FILENAME, backend_args=backend_args)
        meta = {'epoch': runner.epoch, 'iter': iteration}
        with fail_together():
            runner.save_checkpoint(out_dir, FILENAME, meta=meta, backend_args=backend_args)
            if is_main_process():
                write_last_checkpoint(runner, path)
        runner.logger.warning(
            f'{signal.Signals(number).name}: stopped after iteration {iteration} of '
            f'{runner.max_iters}. The checkpoint is {path}; --resume goes on from there.'
        )
        runner.visualizer.close()
        # A launcher kills the others once one has left, rank 0 perhaps while it writes.
        barrier()
        raise SystemExit(128 + number)
