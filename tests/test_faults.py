"""Runs that are stopped, out of space or out of range: nothing lost, nothing silent."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from conftest import ROOT, Run, forget_runs
from fault_runs import (
    ITERATIONS,
    TESTS_ON_PATH,
    TRAIN,
    assert_same_end,
    stops,
    trains,
    write_config,
)

from mmlavit.atomic_backend import AtomicBackend
from mmlavit.checkpoints import load_checkpoint
from mmlavit.cli.launch import run_tool
from mmlavit.cli.parsers import LineParser
from mmlavit.errors import UserError

pytestmark = pytest.mark.usefixtures('isolated')


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


def test_iteration_based_training_goes_on_bit_by_bit() -> None:
    """As all segmentation trains: the order of images, their flips and the weights are the same."""
    text = """
_base_ = 'seg.py'
custom_imports = dict(imports=['fault_hooks'])
model = dict(decode_head=dict(norm_cfg=dict(type='BN')))
train_dataloader = dict(
    num_workers=1,
    dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
                           dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]))
train_cfg = dict(max_iters=6)
default_hooks = dict(checkpoint=dict(interval=6), logger=dict(interval=1))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, end=6, by_epoch=False)]
randomness = dict(seed=1)
"""
    hook = dict(type='SignalAt', numbers=[int(signal.SIGTERM)], iteration=2)
    Path('seg_through.py').write_text(f"{text}custom_hooks = [dict(type='EMAHook', momentum=0.1)]")
    Path('seg_stopped.py').write_text(
        f"{text}custom_hooks = [dict(type='EMAHook', momentum=0.1), {hook!r}]"
    )
    trains('seg_through.py')
    stops(128 + signal.SIGTERM, 'seg_stopped.py')
    assert load_checkpoint('work_dirs/seg_stopped/interrupted.pth')['meta']['iter'] == 3
    trains('seg_stopped.py', '--resume')
    assert_same_end('work_dirs/seg_stopped/iter_6.pth', 'work_dirs/seg_through/iter_6.pth')


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


def test_no_room_for_a_checkpoint_keeps_one(fails: Run) -> None:
    """A complete checkpoint outlives the failure, and the run can go on."""
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
    names = sorted(path.name for path in folder.glob('*.pth'))
    assert names == ['epoch_1.pth', 'epoch_2.pth']


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    """A write that fails leaves the old content and no temporary file."""
    path = tmp_path / 'some.pth'
    AtomicBackend().put(b'old', path)
    with largest_file(1000), pytest.raises(UserError, match=r'it takes 2,000 bytes, .* as it was'):
        AtomicBackend().put(b'x' * 2000, path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [('some.pth', b'old')]


def test_a_full_disk_is_one_message(fails: Run) -> None:
    """Whatever writes to it; the kernel says so of this device at every write."""
    parser = LineParser(prog='tool')

    class Tool:
        @staticmethod
        def main(argv: tuple[str, ...]) -> None:
            run_tool(parser, lambda _: Path('/dev/full').write_text('x' * 10**6) and None, argv)

    message = fails(Tool)  # type: ignore[arg-type]
    assert message == 'tool: error: a file cannot be used: No space left on device\n'


@pytest.mark.slow
def test_a_run_on_a_full_disk_is_one_message(tmp_path: Path) -> None:
    """Its log and its copy of the config are the first that find no room."""
    config = write_config('no_room')
    script = (
        'mount -t tmpfs -o size=64k none "$0" && head -c 1M /dev/zero > "$0/ballast"; exec "$@"'
    )
    command = ['unshare', '--map-root-user', '--mount', 'sh', '-c', script, str(tmp_path)]
    if (
        not shutil.which('unshare')
        or subprocess.run([*command, 'test', '-s', str(tmp_path / 'ballast')]).returncode
    ):
        pytest.skip('this user may not mount a small file system')
    command += [sys.executable, str(ROOT / 'tools/train.py'), config]
    done = subprocess.run(
        [*command, '--work-dir', str(tmp_path)],
        env=TESTS_ON_PATH,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert 'No space left on device' in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr


FORBIDDEN = """
import os, sys
from conftest import load_tool
train, check = load_tool('train'), load_tool('check')
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for argv in (line.split() for line in sys.stdin.read().splitlines()):
    tool = {'train': train, 'check': check}[argv[0]]
    print('>', *argv, flush=True)
    try:
        print('ended with', tool.main(argv[1:]), flush=True)
    except SystemExit as error:
        print('ended with', error.code, flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')
def test_paths_one_may_not_enter_are_named(workspace: Path) -> None:
    """Config, data, checkpoint and work dir below folders, and in files, of somebody else."""
    # Folders of pytest are closed to others, and so are these, inside an open one.
    with TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o777)
        for name in ('cls.py', 'shapes'):
            (shutil.copytree if name == 'shapes' else shutil.copy)(workspace / name, root / name)
        closed = root / 'closed'
        closed.mkdir()
        for path in (closed / 'cls.py', closed / 'x.pth', closed / 'data/train/x', root / 'y.pth'):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b'')
        (root / 'y.pth').chmod(0)
        closed.chmod(0)
        bn = '--cfg-options model.backbone.norm_cfg.type=BN'
        cases = {
            'train closed/cls.py': 'closed/cls.py cannot be used: Permission denied',
            f'train cls.py {bn} train_dataloader.dataset.data_root=closed/data': (
                "train_dataloader: data_root 'closed/data' cannot be used: Permission denied"
            ),
            'train cls.py --resume closed/x.pth': "x.pth' cannot be read: Permission denied",
            'train cls.py --resume y.pth': "'y.pth' cannot be read: Permission denied",
            'train cls.py --work-dir closed/run': "work dir 'closed/run' cannot be written to: ",
            f'check cls.py {bn} val_dataloader.dataset.data_root=closed/data': (
                "FAIL  val_dataloader: data_root 'closed/data' cannot be used: Permission denied"
            ),
        }
        done = subprocess.run(
            [sys.executable, '-c', FORBIDDEN],
            input='\n'.join(cases),
            cwd=root,
            env={**TESTS_ON_PATH, 'HOME': folder, 'LOCAL_RANK': '0'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        closed.chmod(0o700)
    sections = done.stdout.split('> ')[1:]
    assert len(sections) == len(cases), done.stdout[-3000:]
    assert 'Traceback' not in done.stdout, done.stdout
    for section, (case, message) in zip(sections, cases.items(), strict=True):
        assert message in section, (case, section)
        assert f'ended with {1 if case.startswith("check") else 2}' in section


def test_a_loss_that_is_not_finite_stops_the_run(fails: Run) -> None:
    """The message names iteration, losses and images, and no checkpoint follows."""
    config = write_config('broken', dict(type='BreakLossAt', iteration=5))
    message = fails(TRAIN, config)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert 'the loss of iteration 6 (epoch 2) is not finite: loss = nan' in message
    lines = message.split('3 images in the batch:\n')[1].splitlines()
    assert len(lines) == 3
    assert all(Path(line.strip().split(' (id ')[0]).is_file() for line in lines)
    assert [path.name for path in Path('work_dirs/broken').glob('*.pth')] == ['epoch_1.pth']
    weights = load_checkpoint('work_dirs/broken/epoch_1.pth')['state_dict']
    assert all(tensor.isfinite().all() for tensor in weights.values())
