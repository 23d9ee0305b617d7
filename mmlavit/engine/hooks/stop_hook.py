"""Writes a checkpoint when a run is asked to stop."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.fileio import join_path
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mmlavit.registry import HOOKS

__all__ = ['StopHook']

FILENAME = 'interrupted.pth'


@HOOKS.register_module()
class StopHook(Hook):
    """Obey SIGTERM and Ctrl-C after the running iteration, with a checkpoint to resume from.

    The checkpoint is ``interrupted.pth`` beside the others, and the process ends with code 128 plus
    the number of the signal. All processes of a run stop after the same iteration, whichever got
    the signal; that takes one all-reduce of 8 bytes in each. With gradient accumulation they stop
    when the gradients have been used; a validation is finished first. A second Ctrl-C ends the
    process at once; a second SIGTERM does not, because a scheduler and a launcher may each send
    one.
    """

    # After the schedulers have stepped, instead of a regular checkpoint of the same iteration.
    priority = 80

    def __init__(self) -> None:
        self.received = 0
        self._pid = 0
        self._previous: dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Start to remember the signals; outside the main thread, Python cannot."""
        self.received, self._pid = 0, os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stop if asked to.

        Raises:
            SystemExit: If a signal was received.
        """
        number = torch.tensor(self.received)
        all_reduce(number, op='max')
        done = runner.iter + 1
        accumulated = done % getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if number and not accumulated:
            self._stop(runner, int(number), done)

    def after_train(self, runner: Runner) -> None:
        """Release the signals."""
        self.release()

    def release(self) -> None:
        """Leave the signals to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # A child that was forked with this handler: pools end their processes like this.
        is_child = os.getpid() != self._pid
        if is_child or number == self.received == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not self.received and is_main_process():
            again = '; Ctrl-C again stops at once' if number == signal.SIGINT else ''
            text = f'\n{signal.Signals(number).name}: stopping after this iteration{again}\n'
            # print() may be what was interrupted, and cannot be entered twice.
            os.write(2, text.encode())
        self.received = number

    def _stop(self, runner: Runner, number: int, done: int) -> NoReturn:
        saver = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        out_dir = saver.out_dir if saver else runner.work_dir
        backend_args = saver.backend_args if saver else None
        meta = {'epoch': runner.epoch, 'iter': done}
        runner.save_checkpoint(out_dir, FILENAME, meta=meta, backend_args=backend_args)
        path = join_path(out_dir, FILENAME, backend_args=backend_args)
        if is_main_process():
            Path(runner.work_dir, 'last_checkpoint').write_text(path)
        runner.logger.warning(
            f'{signal.Signals(number).name}: stopped after iteration {done} of '
            f'{runner.max_iters}. The checkpoint is {path}; --resume goes on from there.'
        )
        runner.visualizer.close()
        # A launcher ends the others once one has left, rank 0 perhaps while it writes.
        barrier()
        raise SystemExit(128 + number)
