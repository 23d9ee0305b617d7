"""Makes random numbers a function of the seed and of what they are drawn for."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from mmlavit.registry import HOOKS

from ..runner.epoch_loop import PROGRESS

__all__ = ['SeedHook']


@HOOKS.register_module()
class SeedHook(Hook):
    """Seed every iteration by its number, and every batch of images by its epoch and number.

    Checkpoints hold no state of random number generators, and no process could read that of the
    dataloader's workers. Seeded like this, a run that was resumed draws what it would have drawn
    otherwise: dropout, mixing of images and sampling of boxes from ``randomness.seed``, rank and
    iteration, augmentations from seed, rank, epoch and batch, whatever the number of workers.
    tools/train.py adds this hook.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        # epoch, and number of the first batch that is loaded in it; workers read it
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()

    def before_train(self, runner: Runner) -> None:
        """Let the dataset load whole batches.

        Args:
            runner: The runner that trains.
        """
        dataset = runner.train_dataloader.dataset
        if hasattr(dataset, '__getitem__') and not hasattr(dataset, '__getitems__'):
            # torch's dataloader asks for this in place of single samples.
            dataset.__getitems__ = _SeededBatches(dataset, runner.seed, self._position)
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            self._follow_passes(runner.train_dataloader)

    def before_train_epoch(self, runner: Runner) -> None:
        """Tell the workers where the epoch starts.

        Args:
            runner: The runner that trains.
        """
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            epoch, start = 0, runner.iter
        else:
            epoch, start = runner.epoch, runner.message_hub.get_info(PROGRESS, (0, 0))[0]
        self._position.copy_(torch.tensor([epoch, start]))

    def _follow_passes(self, loader: DataLoader) -> None:
        """Count passes over the data as epochs, where iteration-based training starts it again."""
        inner = getattr(loader.batch_sampler, 'sampler', None)
        sampler: Any = next((s for s in (loader.sampler, inner) if hasattr(s, 'set_epoch')), None)
        if sampler is None:
            return
        set_epoch = sampler.set_epoch

        def follow(epoch: int) -> None:
            if epoch:
                self._position.copy_(torch.tensor([epoch, 0]))
            set_epoch(epoch)

        sampler.set_epoch = follow

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed this process.

        Args:
            runner: The runner that trains.
            batch_idx: Number of the batch in the epoch.
            data_batch: What the dataloader gave.
        """
        _seed(runner.seed, get_rank(), runner.iter)


class _SeededBatches:
    """Loads the samples of a batch, after seeding by where the batch stands in training."""

    def __init__(self, dataset: Any, seed: int, position: Tensor) -> None:
        self.dataset = dataset
        self.seed = seed
        self.rank = get_rank()
        self.position = position
        self.last_position = (-1, -1)
        self.count = 0

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        epoch, start = position = tuple(self.position.tolist())
        if position != self.last_position:
            self.last_position, self.count = position, 0
        worker = get_worker_info()
        # Batches go to the workers in turn.
        turn = self.count if worker is None else self.count * worker.num_workers + worker.id
        self.count += 1
        _seed(self.seed, self.rank, epoch, start + turn)
        return [self.dataset[index] for index in indices]


def _seed(*numbers: int) -> None:
    first, second, third = np.random.SeedSequence(numbers).generate_state(3).tolist()
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third)
