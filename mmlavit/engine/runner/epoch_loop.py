"""Train epochs that may be resumed in the middle."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader

__all__ = ['ResumableEpochLoop']

PROGRESS = 'epoch_progress'


class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop, which goes on within an epoch instead of repeating it.

    How far the epoch has come is kept in the message hub, which a checkpoint holds. A checkpoint of
    an epoch that is not over goes on with its next batch, in the order that the sampler gives that
    epoch, so that images, iterations and schedules are those of a run that was never stopped. Where
    an epoch has another number of batches by now, as with another number of GPUs, the same share of
    it is skipped.
    """

    def run_epoch(self) -> None:
        """Train what is left of an epoch."""
        hub, length = self.runner.message_hub, len(self.dataloader)
        done, of = hub.get_info(PROGRESS, (0, length))
        done = done * length // of
        if done:
            self.runner.logger.info(f'Epoch {self._epoch + 1} goes on after batch {done}/{length}.')
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        # Not earlier: hooks tell the sampler which epoch it is.
        batches = _without_first(self.dataloader, done) if done else self.dataloader
        for idx, data_batch in enumerate(batches, done):
            hub.update_info(PROGRESS, (idx + 1, length))
            self.run_iter(idx, data_batch)
        hub.update_info(PROGRESS, (0, length))
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class _Rest:
    """A sampler without its first elements."""

    def __init__(self, sampler: Any, start: int) -> None:
        self.sampler = sampler
        self.start = start

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.sampler), self.start, None)

    def __len__(self) -> int:
        return len(self.sampler) - self.start


def _without_first(loader: DataLoader, start: int) -> Iterable[Any]:
    """The batches from number ``start`` on; those before are not loaded."""
    if start >= len(loader):
        return ()
    if loader.batch_sampler is None:
        return islice(loader, start, None)
    return DataLoader(
        loader.dataset,
        batch_sampler=_Rest(loader.batch_sampler, start),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )
