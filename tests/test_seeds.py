"""Random numbers of a run depend on its seed and position, not on how it got there."""

from typing import Any

import torch
from mmengine.dataset import DefaultSampler
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, Dataset

from mmlavit.engine import SeedHook
from mmlavit.engine.runner.epoch_loop import _without_first


class Noise(Dataset):
    """Every sample is a random number."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(())


class _Run:
    """What SeedHook reads of a runner."""

    def __init__(self, loader: DataLoader) -> None:
        self.train_dataloader, self.seed = loader, 5
        self.train_loop = None
        self.iter = 0


def noise(num_workers: int, start: int = 0, epochs: int = 2, **options: Any) -> list[list[float]]:
    loader = DataLoader(Noise(), batch_size=2, num_workers=num_workers, **options)
    hook = SeedHook()
    hook.before_train(_Run(loader))
    drawn = []
    for epoch in range(epochs):
        hook._position.copy_(torch.tensor([epoch, start]))
        batches = _without_first(loader, start) if start else loader
        drawn.append([value for batch in batches for value in batch.tolist()])
    return drawn


def test_augmentation_does_not_depend_on_workers_or_restarts() -> None:
    """Random numbers follow epoch and batch, wherever the batch is loaded."""
    expected = noise(0)
    assert len({value for epoch in expected for value in epoch}) == 24
    assert noise(2) == expected
    assert noise(3, persistent_workers=True) == expected
    assert noise(0, start=2) == [epoch[4:] for epoch in expected]
    assert noise(2, start=2) == [epoch[4:] for epoch in expected]
    assert noise(0, start=6) == [[], []]


def test_passes_of_iteration_based_training_differ() -> None:
    """A sampler that ends is started again, with workers that have not seen the first pass."""
    data = Noise()
    loader = DataLoader(data, 2, sampler=DefaultSampler(data, shuffle=False), num_workers=2)
    run = _Run(loader)
    run.train_loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
    hook = SeedHook()
    hook.before_train(run)
    hook.before_train_epoch(run)
    batches = _InfiniteDataloaderIterator(loader)
    drawn = [value for _ in range(2 * len(loader)) for value in next(batches).tolist()]
    assert drawn[:12] == noise(0)[0]
    assert len(set(drawn)) == 24
