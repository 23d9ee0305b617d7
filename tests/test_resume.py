"""Loops that go on where they were, with the images and random numbers of a run without a stop."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Run, load_tool
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset

from mmlavit.engine.loops import _Batches, _DataIterator, _EndlessBatches, _seeded

TRAIN = load_tool('train')
RUNNER = SimpleNamespace(seed=5)


class Noise(Dataset):
    """Every sample is its index and a random number."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, float(torch.rand(()))


def epochs(num_workers: int, start: int = 0, **options: bool) -> list[list[float]]:
    """The random numbers of two epochs, the first of which goes on after some batches."""
    loader = DataLoader(Noise(), batch_size=2, num_workers=num_workers, **options)
    loader = _seeded(loader, RUNNER, _Batches)
    drawn = []
    for epoch in range(2):
        loader.batch_sampler.epoch, loader.batch_sampler.start = epoch, 0 if epoch else start
        drawn.append([value for _, batch in loader for value in batch.tolist()])
    return drawn


def test_augmentation_does_not_depend_on_workers_or_stops() -> None:
    """Random numbers follow epoch and batch, wherever the batch is loaded."""
    expected = epochs(0)
    assert len({value for epoch in expected for value in epoch}) == 24
    assert epochs(2) == expected
    assert epochs(3, persistent_workers=True) == expected
    assert epochs(2, start=2) == [expected[0][4:], expected[1]]
    assert epochs(0, start=6) == [[], expected[1]]


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
def test_iterations_are_passed_over_without_loading(sampler: type) -> None:
    """Also beyond the end of a sampler, whose next pass has another order."""

    def draw(num: int, skipped: int) -> list[tuple[list[int], list[float]]]:
        data = Noise()
        loader = DataLoader(data, 2, sampler=sampler(data, shuffle=True, seed=3), num_workers=1)
        loader = _seeded(loader, RUNNER, _EndlessBatches)
        batches = _DataIterator(loader)
        batches.skip_iter(skipped)
        return [tuple(part.tolist() for part in next(batches)) for _ in range(num)]

    through = draw(15, 0)
    assert len({value for _, values in through for value in values}) == 30
    assert [indices for indices, _ in through[:6]] != [indices for indices, _ in through[6:12]]
    assert draw(11, 4) == through[4:]
    assert draw(2, 13) == through[13:]


@pytest.mark.usefixtures('isolated')
@pytest.mark.parametrize('config', ['cls.py', 'seg.py'])
def test_a_batch_that_never_fills_stops_the_run(config: str, fails: Run) -> None:
    """mmengine would train nothing, or look for a batch forever."""
    options = ['train_dataloader.batch_size=100', 'train_dataloader.drop_last=True']
    options.append('train_dataloader.sampler.type=DefaultSampler')
    message = fails(TRAIN, config, '--cfg-options', *options)
    assert 'train_dataloader gives no batch' in message


@pytest.mark.usefixtures('isolated')
@pytest.mark.parametrize('meta', [{}, {'epoch': 1, 'iter': 4}], ids=['bare', 'published'])
def test_weights_cannot_be_resumed(meta: dict[str, int], checkpoint: str, fails: Run) -> None:
    """One message says what is missing, and how to start from the weights instead."""
    torch.save(dict(torch.load(checkpoint), meta=meta), 'weights.pth')
    message = fails(TRAIN, 'cls.py', '--resume', 'weights.pth')
    assert "checkpoint 'weights.pth' cannot be resumed" in message
    assert '--cfg-options load_from=weights.pth' in message


@pytest.mark.usefixtures('isolated')
def test_a_stale_pointer_cannot_be_resumed(fails: Run) -> None:
    """The message names the checkpoint that is gone."""
    Path('stale').mkdir()
    Path('stale/last_checkpoint').write_text('gone/epoch_3.pth')
    message = fails(TRAIN, 'cls.py', '--work-dir', 'stale', '--resume')
    assert "checkpoint 'gone/epoch_3.pth' does not exist" in message
