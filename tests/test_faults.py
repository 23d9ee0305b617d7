"""Runs that are killed, stopped, out of space or out of range: nothing lost, nothing silent."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Run, forget_runs, load_tool
from distributed_jobs import finish, start
from mmengine.config import Config
from torch.utils.data import DataLoader, Dataset

from mmlavit.atomic_backend import AtomicBackend
from mmlavit.checkpoints import load_checkpoint
from mmlavit.engine import (
    SeedHook,
)
from mmlavit.engine.runner.epoch_loop import _without_first
from mmlavit.errors import UnsafeCheckpointError, UserError

TRAIN = load_tool('train')
# 12 images, 3 a batch
ITERATIONS = 4
TESTS_ON_PATH = {**os.environ, 'PYTHONPATH': str(ROOT / 'tests')}

pytestmark = pytest.mark.usefixtures('isolated')


def write_config(name: str, *hooks: dict[str, Any], epochs: int = 2, **options: Any) -> str:
    """A config with an averaged model and seeded flips, and with hooks that do harm."""
    text = f"""
_base_ = 'cls.py'
custom_imports = dict(imports=['fault_hooks'])
train_cfg = dict(max_epochs={epochs})
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
                   dict(type='MultiStepLR', milestones=[1], by_epoch=True)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1))
custom_hooks = {[dict(type='EMAHook', momentum=0.1), *hooks]!r}
randomness = dict(seed=1)
"""
    text += ''.join(f'{key} = {value!r}\n' for key, value in options.items())
    Path(f'{name}.py').write_text(text)
    return f'{name}.py'


def stops(code: int, *argv: str) -> None:
    """Train in this process, which must end with a code."""
    forget_runs()
    with pytest.raises(SystemExit) as exit_info:
        TRAIN.main(argv)
    assert exit_info.value.code == code


def trains(*argv: str) -> None:
    forget_runs()
    TRAIN.main(argv)


def assert_same_end(found: str, expected: str) -> None:
    """Weights, averages, momenta and the history of the learning rate are equal bit by bit."""
    a, b = load_checkpoint(found), load_checkpoint(expected)
    assert a['meta']['iter'] == b['meta']['iter']
    for key in ('state_dict', 'ema_state_dict'):
        torch.testing.assert_close(dict(a[key]), dict(b[key]), rtol=0, atol=0)
    torch.testing.assert_close(a['optimizer']['state'], b['optimizer']['state'], rtol=0, atol=0)
    for key in ('train/lr', 'train/loss'):
        histories = [c['message_hub']['log_scalars'][key].data[0].tolist() for c in (a, b)]
        assert histories[0] == histories[1]


@pytest.fixture(scope='module')
def uninterrupted(workspace: Path) -> str:
    """The last checkpoint of a run that nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setenv('LOCAL_RANK', '0')
        trains(write_config('through'))
        forget_runs()
    return str(workspace / 'work_dirs/through/epoch_2.pth')


@pytest.mark.parametrize(
    ('name', 'hook', 'stopped_at'),
    [
        ('mid', dict(numbers=[signal.SIGTERM], iteration=1), (0, 2)),
        ('last', dict(numbers=[signal.SIGINT], iteration=ITERATIONS - 1), (0, ITERATIONS)),
        ('twice', dict(numbers=[signal.SIGTERM] * 2, iteration=5), (1, 6)),
        (
            'validation',
            dict(numbers=[signal.SIGTERM], iteration=ITERATIONS, mode='val'),
            (1, ITERATIONS),
        ),
    ],
)
def test_a_signal_leaves_a_checkpoint_that_goes_on(
    name: str,
    hook: dict[str, Any],
    stopped_at: tuple[int, int],
    uninterrupted: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A run that was stopped and resumed ends as if it had not been, also within an epoch."""
    config = write_config(
        name, dict(type='SignalAt', **{**hook, 'numbers': [*map(int, hook['numbers'])]})
    )
    number = hook['numbers'][0]
    stops(128 + number, config)
    output = capfd.readouterr()
    path = Path(f'work_dirs/{name}/interrupted.pth').absolute()
    assert f'{number.name}: stopping after this iteration' in output.err
    assert (
        f'{number.name}: stopped after iteration {stopped_at[1]} of {2 * ITERATIONS}. '
        f'The checkpoint is {path}; --resume goes on from there.'
    ) in output.out
    assert Path(f'work_dirs/{name}/last_checkpoint').read_text() == str(path)
    meta = load_checkpoint(str(path))['meta']
    assert (meta['epoch'], meta['iter']) == stopped_at
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    trains(config, '--resume')
    assert_same_end(f'work_dirs/{name}/epoch_2.pth', uninterrupted)


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once() -> None:
    """It ends the process by the signal, before the iteration is over."""
    config = write_config('hasty', dict(type='SignalAt', numbers=[2, 2], iteration=1))
    command = [sys.executable, str(ROOT / 'tools/train.py'), config]
    done = subprocess.run(
        command, env=TESTS_ON_PATH, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGINT, done.stderr[-2000:]
    assert 'Ctrl-C again stops at once' in done.stderr
    assert not list(Path('work_dirs/hasty').glob('*.pth'))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse to make files larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_a_checkpoint_keeps_the_one_before(fails: Run) -> None:
    """With max_keep_ckpts=1 the only checkpoint outlives the failure, and the run can go on."""
    config = write_config('full', epochs=1)
    trains(config)
    folder = Path('work_dirs/full')
    before = (folder / 'epoch_1.pth').read_bytes()
    config = write_config('full', epochs=2)
    with largest_file(len(before) // 2):
        message = fails(TRAIN, config, '--resume')
    assert (
        f'{folder.absolute()}/epoch_2.pth cannot be written: File too large; it takes ' in message
    )
    assert ' are free in ' in message
    assert (folder / 'epoch_1.pth').read_bytes() == before
    assert (folder / 'last_checkpoint').read_text() == str((folder / 'epoch_1.pth').absolute())
    assert not list(folder.glob('.*.tmp'))

    trains(config, '--resume')
    assert [path.name for path in folder.glob('*.pth')] == ['epoch_2.pth']


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    """A write that fails leaves the old content and no temporary file."""
    path = tmp_path / 'some.pth'
    AtomicBackend().put(b'old', path)
    with largest_file(1000), pytest.raises(UserError, match=r'it takes 2,000 bytes, .* as it was'):
        AtomicBackend().put(b'x' * 2000, path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [('some.pth', b'old')]


def test_a_loss_that_is_not_finite_stops_the_run(fails: Run) -> None:
    """The message names iteration, losses and images, and no checkpoint follows."""
    config = write_config('broken', dict(type='BreakLossAt', iteration=5))
    message = fails(TRAIN, config)
    assert 'the loss of iteration 6 (epoch 2) is not finite: loss = nan' in message
    lines = message.split('3 images in the batch:\n')[1].splitlines()
    assert len(lines) == 3
    assert all(Path(line.strip().split(' (id ')[0]).is_file() for line in lines)
    assert [path.name for path in Path('work_dirs/broken').glob('*.pth')] == ['epoch_1.pth']
    weights = load_checkpoint('work_dirs/broken/epoch_1.pth')['state_dict']
    assert all(tensor.isfinite().all() for tensor in weights.values())


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


def launch_two(config: str, *argv: str) -> tuple[int, str]:
    job = start('dist_train.sh', config, '2', *argv, PYTHONPATH=str(ROOT / 'tests'))
    output = finish(job)
    return job.returncode, output


@pytest.mark.slow
def test_two_processes_stop_together() -> None:
    """A signal to rank 1 stops both after the same iteration, and the run goes on from there."""
    config = write_config('two', dict(type='SignalAt', numbers=[15], iteration=0, rank=1))
    code, output = launch_two(config)
    assert code != 0
    assert 'stopped after iteration 1 of 4' in output, output[-3000:]
    assert 'exitcode  : 143' in output
    code, output = launch_two(config, '--resume')
    assert code == 0, output[-3000:]
    assert 'goes on after batch 1/2' in output
    assert load_checkpoint('work_dirs/two/epoch_2.pth')['meta']['iter'] == 4


@pytest.mark.slow
def test_a_loss_of_one_process_stops_both() -> None:
    """Rank 0, whose loss is finite, tells what rank 1 has seen and writes no checkpoint."""
    config = write_config('two_broken', dict(type='BreakLossAt', iteration=1, rank=1))
    code, output = launch_two(config)
    assert code != 0
    assert 'rank 1: the loss of iteration 2 (epoch 1) is not finite' in output, output[-3000:]
    # torchrun has a traceback of its own
    assert 'tools/train.py", line' not in output
    assert not list(Path('work_dirs/two_broken').glob('*.pth'))


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been() -> None:
    """The harness with few stops: SIGKILL at random moments and SIGTERM to all processes."""
    script = str(ROOT / 'benchmarks/kill_and_resume.py')
    argv = ['--kills', '3', '--preemptions', '1', '--epochs', '8']
    done = subprocess.run(
        [sys.executable, script, *argv],
        env=TESTS_ON_PATH,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'equal bit by bit' in ' '.join(done.stdout.split())
