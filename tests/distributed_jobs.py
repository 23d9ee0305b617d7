"""Two real processes over gloo: started by the launchers, or spawned with a function to run."""

import faulthandler
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

# A collective that waits longer than this raises in every process.
TIMEOUT = 'env_cfg.dist_cfg.timeout=60'
TAIL = 20000


def free_port() -> str:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(('', 0))
        return str(probe.getsockname()[1])


def start(script: str, *argv: str, **variables: str) -> subprocess.Popen[str]:
    """Start a script of tools/ where no GPU is seen."""
    env = os.environ | {
        'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        'CUDA_VISIBLE_DEVICES': '',
        'OMP_NUM_THREADS': '1',
        'PYTHONFAULTHANDLER': '1',
        'PORT': variables.pop('PORT', None) or free_port(),
    }
    env.pop('LOCAL_RANK', None)
    command = ['bash', ROOT / 'tools' / script, *argv]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=env | variables, start_new_session=True, **streams)


def finish(job: subprocess.Popen[str], timeout: float = 180) -> str:
    """Wait for a job and return what it printed; one that hangs fails with its stacks."""
    try:
        return job.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        _kill(descendants(job.pid), signal.SIGABRT)  # Python's fault handler prints the stacks
        time.sleep(5)
        _kill([*descendants(job.pid), job.pid], signal.SIGKILL)
        output = job.communicate()[0]
        pytest.fail(f'{job.args} ran longer than {timeout} seconds:\n{output[-TAIL:]}')
    finally:
        if job.poll() is None:
            _kill([*descendants(job.pid), job.pid], signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs: torchrun starts each in a session of its own."""
    found = []
    # without effect for a process that is gone
    with suppress(OSError):
        for path in Path(f'/proc/{pid}/task').glob('*/children'):
            for child in map(int, path.read_text().split()):
                found += [child, *descendants(child)]
    return found


def _kill(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def launch(script: str, *argv: str) -> str:
    """Run a script of tools/ that must succeed, and return what it printed."""
    job = start(script, *argv)
    output = finish(job)
    assert job.returncode == 0, output[-TAIL:]
    return output


def spawn(function: Callable[..., None], *args: Any, timeout: float = 240) -> None:
    """Call a function in two processes that find each other as torchrun's would."""
    context = torch.multiprocessing.spawn(
        _work, (free_port(), timeout, function, args), nprocs=2, join=False
    )
    # later than the processes themselves give up
    deadline = time.monotonic() + timeout + 30
    try:
        # returns as well when the first of them has ended
        while not context.join(timeout=max(deadline - time.monotonic(), 0)):
            if time.monotonic() > deadline:
                pytest.fail(f'{function.__name__} did not end within {timeout} seconds')
    finally:
        for process in context.processes:
            process.kill()


def _work(
    rank: int, port: str, timeout: float, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    faulthandler.dump_traceback_later(timeout, exit=True)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, CUDA_VISIBLE_DEVICES='')
    torch.set_num_threads(1)
    function(*args)
    torch.distributed.destroy_process_group()
