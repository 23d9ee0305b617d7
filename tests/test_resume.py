"""Which checkpoint a run goes on from."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, load_tool
from mmengine.config import Config

from mmlavit.errors import UnsafeCheckpointError, UserError

TRAIN = load_tool('train')

pytestmark = pytest.mark.usefixtures('isolated')


def save(path: str, iteration: int, **content: Any) -> Path:
    """A checkpoint with the entries that a run leaves."""
    state = dict(
        meta=dict(epoch=0, iter=iteration, seed=7),
        state_dict=dict(weight=torch.ones(1000)),
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
        optimizer={},
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: v for k, v in {**state, **content}.items() if v is not None}, path)
    return Path(path)


def resumed(work_dir: str) -> tuple[str | None, str]:
    cfg = Config(dict(work_dir=work_dir))
    warnings = TRAIN.resume(cfg, 'auto')
    assert cfg.resume == ('load_from' in cfg)
    return cfg.get('load_from'), '\n'.join(warnings)


def test_resume_takes_the_newest_by_iteration() -> None:
    """Neither the names nor the dates decide; weights and unfinished files do not count."""
    for name, iteration in (('epoch_9', 900), ('epoch_10', 1000), ('epoch_2', 200)):
        save(f'newest/{name}.pth', iteration)
    save('newest/best_top1_epoch_11.pth', 1100, optimizer=None)
    save('newest/weights.pth', 0, meta=None, message_hub=None)
    save('newest/.epoch_12.pth.tmp', 1200)
    assert resumed('newest') == ('newest/epoch_10.pth', '')
    assert resumed('empty') == (None, '')


def truncate(path: Path) -> None:
    with path.open('r+b') as stream:
        stream.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize(
    'damage',
    [
        truncate,
        lambda path: path.write_bytes(b''),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(
            path.read_bytes().replace(b'weight', b'\xff\xfe\xfd\xfc\xfb\xfa')
        ),
    ],
    ids=['truncated', 'empty', 'zeros', 'garbled'],
)
def test_resume_passes_over_a_damaged_file(damage: Any, request: pytest.FixtureRequest) -> None:
    """The warning names the file, and a run without a complete file is not started anew."""
    work_dir = f'damaged/{request.node.callspec.id}'
    save(f'{work_dir}/epoch_1.pth', 1)
    newest = save(f'{work_dir}/epoch_2.pth', 2)
    Path(work_dir, 'last_checkpoint').write_text(str(newest))
    damage(newest)
    path, warning = resumed(work_dir)
    assert path == f'{work_dir}/epoch_1.pth'
    assert 'passed over a damaged file' in warning
    assert f'{work_dir}/epoch_2.pth' in warning
    Path(path).unlink()
    with pytest.raises(UserError, match=r'no complete checkpoint in .*epoch_2\.pth.*start anew'):
        resumed(work_dir)


def test_resume_stops_at_a_newest_file_that_is_refused(fails: Run) -> None:
    """It is complete, so that the file before it would lose work without need; older ones wait."""
    save('refused/epoch_1.pth', 1)
    newest = save('refused/epoch_2.pth', 2, extra=os.getcwd)
    message = fails(TRAIN, 'cls.py', '--work-dir', 'refused', '--resume')
    assert (
        "checkpoint 'refused/epoch_2.pth' cannot be read safely: it holds posix.getcwd" in message
    )
    assert '--trust-checkpoint' in message
    os.utime(newest, (1e9, 1e9))
    path, warning = resumed('refused')
    assert path == 'refused/epoch_1.pth'
    assert 'passed over an older file' in warning and 'refused/epoch_2.pth' in warning
    Path(path).unlink()
    with pytest.raises(UnsafeCheckpointError):
        resumed('refused')


@pytest.mark.parametrize('content', ['gone/epoch_3.pth', '', '\0' * 40, '\udcff', 'x' * 5000])
def test_resume_survives_a_stale_last_checkpoint(content: str) -> None:
    """What it names does not exist: the newest file serves."""
    save('stale/epoch_1.pth', 1)
    save('stale/epoch_2.pth', 2)
    Path('stale/last_checkpoint').write_text(content, errors='surrogateescape')
    path, warning = resumed('stale')
    assert path == 'stale/epoch_2.pth'
    assert ('which does not exist' in warning) == bool(content.strip('\0'))


def test_resume_follows_last_checkpoint_and_a_moved_work_dir() -> None:
    """Files of an earlier run in the folder are older than what it names; later ones are newer."""
    old = save('again/epoch_100.pth', 100)
    os.utime(old, (1e9, 1e9))
    save('again/epoch_1.pth', 1)
    Path('again/last_checkpoint').write_text('/elsewhere/again/epoch_1.pth')
    assert resumed('again') == ('again/epoch_1.pth', '')
    save('again/epoch_2.pth', 2)
    assert resumed('again') == ('again/epoch_2.pth', '')


def test_resume_reads_a_folder_once() -> None:
    """Runs write an absolute path to last_checkpoint, and most work dirs are relative."""
    save('once/epoch_1.pth', 1)
    newest = save('once/epoch_2.pth', 2)
    truncate(newest)
    Path('once/last_checkpoint').write_text(str(newest.absolute()))
    path, warning = resumed('once')
    assert path == 'once/epoch_1.pth'
    assert warning.count('passed over') == 1


def test_a_weights_file_that_is_named_counts() -> None:
    """A checkpoint without an optimizer is resumed where last_checkpoint names it."""
    named = save('bare/epoch_1.pth', 1, optimizer=None)
    Path('bare/last_checkpoint').write_text(str(named.absolute()))
    path, warning = resumed('bare')
    assert path == 'bare/epoch_1.pth'
    assert 'holds no state of the optimizer' in warning


def test_resume_takes_over_the_seed() -> None:
    """The order of the samples comes from the seed, which a config without one does not have."""
    path = str(save('seeded/epoch_1.pth', 1))
    for given, expected in ((None, 7), (3, 3)):
        cfg = Config(dict(work_dir='seeded', randomness=dict(seed=given)))
        assert TRAIN.resume(cfg, path) == []
        assert cfg.randomness.seed == expected


def test_weights_cannot_be_resumed(checkpoint: str, fails: Run) -> None:
    """One message says what is missing and how to start from the weights instead."""
    message = fails(TRAIN, 'cls.py', '--resume', checkpoint)
    assert f"checkpoint '{checkpoint}' cannot be resumed" in message
    assert f'--cfg-options load_from={checkpoint}' in message
    assert message.count('\n') == 1
