"""Two real processes over gloo: started by the launchers, or spawned with a function to run."""

import faulthandler
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
import torch
from conftest import ROOT

# Below what Linux hands out by itself (net.ipv4.ip_local_port_range).
PORTS = range(20000, 30000)
# A collective that waits longer than this raises in every process.
TIMEOUT = 'env_cfg.dist_cfg.timeout=60'
TAIL = 20000

_taken: list[int] = []


def free_port() -> str:
    """A port that no other process that asks here gets until this one ends."""
    for port in PORTS:
        # no port twice, not even while the other job has still to bind it
        with suppress(OSError), socket.socket() as probe:
            lock = os.open(Path(gettempdir(), f'mmlavit_test_port_{port}'), os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                probe.bind(('', port))
            except OSError:
                os.close(lock)
                raise
            _taken.append(lock)
            return str(port)
    raise RuntimeError(f'no port of {PORTS} is free')


def start(script: str, *argv: str, **variables: str) -> subprocess.Popen[str]:
    """Start a script of tools/ where no GPU is seen."""
    env = {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        'CUDA_VISIBLE_DEVICES': '',
        'OMP_NUM_THREADS': '1',
        'PYTHONFAULTHANDLER': '1',
        'PORT': free_port(),
        **variables,
    }
    env.pop('LOCAL_RANK', None)
    return subprocess.Popen(
        ['bash', ROOT / 'tools' / script, *argv],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(job: subprocess.Popen[str], timeout: float = 180) -> str:
    """Wait for a job and return what it printed; one that hangs fails with its stacks."""
    try:
        return job.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        output = _abort(job)
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


def _abort(job: subprocess.Popen[str]) -> str:
    """End a job from its ranks upwards; Python's fault handler prints their stacks on SIGABRT."""
    ranks = descendants(job.pid)
    _kill(ranks, signal.SIGABRT)
    time.sleep(5)
    # torchrun, unless it has ended for want of ranks
    _kill([job.pid], signal.SIGABRT)
    with suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGTERM)
    try:
        return job.communicate(timeout=40)[0]
    except subprocess.TimeoutExpired:
        _kill([*ranks, *descendants(job.pid), job.pid], signal.SIGKILL)
        return job.communicate()[0]


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
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=port,
        CUDA_VISIBLE_DEVICES='',
    )
    torch.set_num_threads(1)
    function(*args)
    torch.distributed.destroy_process_group()
