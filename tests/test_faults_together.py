"""Runs of several processes that are stopped: all of them end, and the run goes on."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from distributed_jobs import descendants, finish, start
from fault_runs import TESTS_ON_PATH, write_config

from mmlavit.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures('isolated')


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
def test_a_signal_to_the_launcher_reaches_every_process() -> None:
    """A scheduler signals the script; torchrun takes its place and hands the signal on."""
    config = write_config('launched', epochs=1000)
    job = start('dist_train.sh', config, '2', PYTHONPATH=str(ROOT / 'tests'))
    deadline = time.monotonic() + 120
    while not Path('work_dirs/launched/epoch_1.pth').exists() and job.poll() is None:
        assert time.monotonic() < deadline, finish(job, timeout=0)
        time.sleep(0.1)
    processes = descendants(job.pid)
    job.terminate()
    output = finish(job, timeout=60)
    assert job.returncode not in (None, 0)
    assert 'SIGTERM: stopped after iteration ' in output, output[-3000:]
    assert Path('work_dirs/launched/interrupted.pth').is_file()
    assert len(processes) >= 2
    assert not [pid for pid in processes if Path(f'/proc/{pid}').exists()]


@pytest.mark.slow
def test_a_loss_of_one_process_stops_both() -> None:
    """Rank 0, whose loss is finite, writes no checkpoint either."""
    config = write_config('two_broken', dict(type='BreakLossAt', iteration=1, rank=1))
    code, output = launch_two(config)
    assert code != 0
    text = 'the loss of iteration 2 (epoch 1) is not finite: '
    assert f'{text}loss = nan' in output, output[-3000:]
    assert f'{text}in another process' in output
    assert 'exitcode  : 2' in output
    assert not list(Path('work_dirs/two_broken').glob('*.pth'))


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been() -> None:
    """The harness with few stops: SIGKILL at random moments and SIGTERM to all processes."""
    script = str(ROOT / 'benchmarks/kill_and_resume.py')
    argv = ['--kills', '2', '--preemptions', '1', '--epochs', '6']
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
