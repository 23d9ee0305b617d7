"""Two real processes over gloo: started by the launchers, or spawned with a function to run."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def start(script: str, *argv: str, **variables: str) -> subprocess.Popen[str]:
    """Start a script of tools/ where no GPU is seen."""
    env = {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        'CUDA_VISIBLE_DEVICES': '',
        'OMP_NUM_THREADS': '1',
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
    )


def finish(job: subprocess.Popen[str]) -> str:
    """Wait for a job and return what it printed."""
    try:
        return job.communicate(timeout=180)[0]
    finally:
        job.kill()


def launch(script: str, *argv: str) -> str:
    """Run a script of tools/ that must succeed, and return what it printed."""
    job = start(script, *argv)
    output = finish(job)
    assert job.returncode == 0, output
    return output


def spawn(function: Callable[..., None], *args: Any) -> None:
    """Call a function in two processes that find each other as torchrun's would."""
    torch.multiprocessing.spawn(_work, (free_port(), function, args), nprocs=2)


def _work(rank: int, port: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
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
