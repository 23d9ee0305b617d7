"""Remember SIGTERM and Ctrl-C until they can be obeyed."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from mmengine.dist import is_main_process
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ['StopSignals']

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Catches the signals that ask a run to stop.

    The first one is remembered. A second Ctrl-C ends the process at once; a second SIGTERM does
    not, because a scheduler and a launcher may each send one.
    """

    def __init__(self) -> None:
        self.received = 0
        self._interrupts = 0
        self._pid = 0
        self._previous: dict[int, Any] = {}
        # in memory that the workers of dataloaders share
        self._training = torch.zeros(1, dtype=torch.uint8).share_memory_()

    def catch(self) -> None:
        """Start to catch; without effect outside the main thread, where Python cannot."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        self.received = self._interrupts = 0
        self._pid = os.getpid()
        self._training[0] = 1
        self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}

    def release(self) -> None:
        """Give the signals back to whoever had them."""
        self._training[0] = 0
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def shield(self, dataloader: DataLoader) -> None:
        """Keep the workers of a dataloader alive when the whole process group is asked to stop.

        Schedulers and terminals signal every process. Without its workers a run could not finish
        the iteration.

        Args:
            dataloader: Changed in place, before it starts its workers.
        """
        if not isinstance(dataloader.worker_init_fn, _Shield):
            dataloader.worker_init_fn = _Shield(dataloader.worker_init_fn, self._training)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A child that was forked with this handler; pools end their processes like this.
            _die(number)
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            _die(number)
        if not self.received:
            self.received = number
            if is_main_process():
                name = signal.Signals(number).name
                again = '; Ctrl-C again stops at once' if number == signal.SIGINT else ''
                # print() may be what was interrupted, and cannot be entered twice.
                os.write(2, f'\n{name}: stopping after this iteration{again}\n'.encode())


class _Shield:
    """Initialises a worker so that it outlives SIGINT and SIGTERM while the run trains."""

    def __init__(self, then: Callable[[int], None] | None, training: Tensor) -> None:
        self.then = then
        self.training = training

    def __call__(self, worker_id: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._ignore_while_training)
        if self.then is not None:
            self.then(worker_id)

    def _ignore_while_training(self, number: int, frame: FrameType | None) -> None:
        # Afterwards the signal comes from the run itself, which waits for its workers to end well.
        if not self.training[0]:
            os._exit(0)


def _die(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
