"""Hooks that do to a run what schedulers, users and bad data do."""

import os

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class SignalAt(Hook):
    """Send signals to the process itself, once.

    Args:
        numbers: The signals, in this order.
        iteration: How many iterations come before.
        rank: Which process gets them.
    """

    def __init__(self, numbers: list[int], iteration: int = 0, rank: int = 0) -> None:
        self.numbers, self.iteration, self.rank = numbers, iteration, rank

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        if (runner.iter, get_rank()) == (self.iteration, self.rank):
            for number in self.numbers:
                os.kill(os.getpid(), number)
            self.numbers = []


@HOOKS.register_module()
class BreakLossAt(Hook):
    """Make the images of a batch infinite.

    Args:
        iteration: How many iterations come before.
        rank: In which process.
    """

    def __init__(self, iteration: int, rank: int = 0) -> None:
        self.iteration, self.rank = iteration, rank

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        if (runner.iter, get_rank()) == (self.iteration, self.rank) and data_batch:
            data_batch['inputs'] = data_batch['inputs'].float() * torch.inf
