"""Train so that a run that was stopped goes on exactly where it was."""

import random
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

from mmlavit.datasets.guarded import GuardedDataset
from mmlavit.errors import UserError
from mmlavit.registry import LOOPS

__all__ = ['ResumableEpochLoop', 'ResumableIterLoop']

PROGRESS = 'epoch_progress'
NO_BATCH = (
    'train_dataloader gives no batch: its drop_last is True, and a process has fewer samples than '
    'batch_size'
)


class _SeededLoop(BaseLoop):
    """Makes random numbers a function of the seed and of what they are drawn for.

    Checkpoints hold no state of random number generators, and no process could read that of the
    dataloader's workers. Dropout, mixing of images and sampling of boxes are drawn from seed, rank
    and iteration, augmentations from seed, rank, epoch and batch, whatever the number of workers.
    """

    def run_iter(self, *args: Any) -> None:
        """Seed this process, then train an iteration."""
        _seed(self.runner.seed, get_rank(), self.runner.iter)
        super().run_iter(*args)


@LOOPS.register_module()
class ResumableEpochLoop(_SeededLoop, EpochBasedTrainLoop):
    """mmengine's loop, which goes on within an epoch instead of repeating it.

    How far the epoch has come is kept in the message hub, which a checkpoint holds. Images,
    iterations, random numbers and schedules are those of a run that was never stopped. Where an
    epoch has another number of batches by now, as with another number of GPUs, the same share of it
    is skipped.
    """

    dataloader: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dataloader = _seeded(self.dataloader, self.runner, _Batches)

    def run_epoch(self) -> None:
        """Train what is left of an epoch.

        Raises:
            UserError: If an epoch has no batch, with which mmengine would train nothing.
        """
        hub, length = self.runner.message_hub, len(self.dataloader)
        if not length:
            raise UserError(NO_BATCH)
        done, of = hub.get_info(PROGRESS, (0, length))
        done = done * length // of
        if done:
            self.runner.logger.info(f'Epoch {self._epoch + 1} goes on after batch {done}/{length}.')
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        rest = self.dataloader
        if isinstance(batches := getattr(rest, 'batch_sampler', None), _Batches):
            batches.epoch, batches.start = self._epoch, done
        else:
            rest = islice(rest, done, None)
        for idx, data_batch in enumerate(rest, done):
            hub.update_info(PROGRESS, (idx + 1, length))
            self.run_iter(idx, data_batch)
        hub.update_info(PROGRESS, (0, length))
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class ResumableIterLoop(_SeededLoop, IterBasedTrainLoop):
    """mmengine's loop, which passes over what was trained without loading it."""

    dataloader: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dataloader = _seeded(self.dataloader, self.runner, _EndlessBatches)
        if isinstance(getattr(self.dataloader, 'batch_sampler', None), _Batches):
            self.dataloader_iterator = _DataIterator(self.dataloader)


class _Batches:
    """The batches of a dataloader as lists of the seed's numbers and the indices."""

    def __init__(self, loader: DataLoader, runner: Any) -> None:
        self.batch_sampler: Any = loader.batch_sampler
        # mmengine's DistSamplerSeedHook looks for the first, its FlexibleRunner for the second
        self.sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
        self.batch_size = getattr(loader.batch_sampler, 'batch_size', loader.batch_size)
        self.runner = runner
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[Any]]:
        batches = islice(self.batch_sampler, self.start, None)
        return (self._seeded(number, batch) for number, batch in enumerate(batches, self.start))

    def _seeded(self, number: int, batch: Sequence[int]) -> list[Any]:
        return [(self.runner.seed, get_rank(), self.epoch, number), *batch]


class _EndlessBatches(_Batches):
    """The batches of pass after pass; ``start`` counts through all of them."""

    def __iter__(self) -> Iterator[list[Any]]:
        left = self.start
        for self.epoch in count():
            if self.epoch and hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(self.epoch)
            number = None
            for number, batch in enumerate(self.batch_sampler):
                if left:
                    left -= 1
                else:
                    yield self._seeded(number, batch)
            if number is None:
                raise UserError(NO_BATCH)


class _DataIterator:
    """What mmengine's loop draws batches from."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.batches: Iterator[Any] | None = None

    def skip_iter(self, num_iters: int) -> None:
        self.loader.batch_sampler.start = num_iters  # type: ignore[union-attr]

    def __next__(self) -> Any:
        # Not earlier: workers start to load at once.
        self.batches = self.batches or iter(self.loader)
        return next(self.batches)


class _SeededDataset(GuardedDataset):
    """Loads the samples of a batch after seeding the process that does, a worker perhaps."""

    def __getitems__(self, batch: Sequence[Any]) -> list[Any]:
        numbers, *indices = batch
        _seed(*numbers)
        return [self[index] for index in indices]


def _seeded(loader: Any, runner: Any, kind: type[_Batches]) -> Any:
    """A dataloader over other batches; torch cannot exchange those of one that exists."""
    if getattr(loader, 'batch_sampler', None) is None:
        return loader  # a stream, whose samples nobody can pass over
    options = {
        name: getattr(loader, name)
        for name in (
            'num_workers',
            'collate_fn',
            'pin_memory',
            'timeout',
            'worker_init_fn',
            'multiprocessing_context',
            'generator',
            'prefetch_factor',
            'persistent_workers',
        )
    }
    return DataLoader(_SeededDataset(loader.dataset), batch_sampler=kind(loader, runner), **options)


def _seed(*numbers: int) -> None:
    first, second, third = np.random.SeedSequence(numbers).generate_state(3).tolist()
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third)
