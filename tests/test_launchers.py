"""tools/dist_*.sh and tools/slurm_*.sh: what they start, and what they say where that fails."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, Run, load_tool
from distributed_jobs import TIMEOUT, finish, free_port, start
from mmengine.device import get_device

TRAIN = load_tool('train')

pytestmark = pytest.mark.usefixtures('isolated')


@pytest.mark.parametrize(
    'argv',
    [
        ['dist_train.sh', 'cls.py', '--amp'],
        ['dist_test.sh', 'cls.py', 'cls.pth', '--tta'],
        ['slurm_train.sh', 'gpu', 'a job'],
        ['slurm_test.sh', 'gpu', 'a job', 'cls.py'],
    ],
    ids=lambda argv: argv[0],
)
def test_launchers_explain_their_usage(argv: list[str]) -> None:
    """A launcher that lacks an argument, or a number of processes, starts nothing."""
    job = start(*argv)
    output = finish(job)
    assert job.returncode == 2
    assert output.startswith('usage: ')
    assert output.count('\n') == 1


@pytest.mark.slow
def test_two_nodes_work_together() -> None:
    """NNODES, NODE_RANK, MASTER_ADDR and PORT join what is started on each machine."""
    argv = ('dist_train.sh', 'cls.py', '1', '--work-dir', 'work dirs/nodes')
    argv += ('--cfg-options', 'custom_hooks=[]', TIMEOUT)
    where = dict(NNODES='2', MASTER_ADDR='localhost', PORT=free_port())
    nodes = [start(*argv, NODE_RANK=rank, **where) for rank in '01']
    outputs = [finish(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    # 12 images in batches of 3: two processes need 2 iterations, one needs 4
    assert 'Epoch(train) [1][2/2]' in outputs[0]
    assert 'accuracy/top1: ' in outputs[0]
    # the second machine is silent, as the other processes of the first are
    assert 'Epoch(train)' not in outputs[1]
    assert Path('work dirs/nodes/epoch_1.pth').is_file()


@pytest.mark.parametrize(
    ('argv', 'command'),
    [
        (
            ['slurm_train.sh', 'gpu', 'a job', 'cls.py', 'work dirs/slurm', '--amp'],
            ['train.py', 'cls.py', '--launcher', 'slurm', '--work-dir', 'work dirs/slurm', '--amp'],
        ),
        (
            ['slurm_train.sh', 'gpu', 'a job', 'cls.py', '--resume'],
            ['train.py', 'cls.py', '--launcher', 'slurm', '--resume'],
        ),
        (
            ['slurm_test.sh', 'gpu', 'a job', 'cls.py', 'cls.pth', '--out', 'all results.pkl'],
            ['test.py', 'cls.py', 'cls.pth', '--launcher', 'slurm', '--out', 'all results.pkl'],
        ),
    ],
)
def test_slurm_is_asked_for_the_processes_and_the_tool(
    argv: list[str], command: list[str], tmp_path: Path
) -> None:
    """Arguments keep their order and their spaces; this ``srun`` prints what it gets."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "port $MASTER_PORT"\nfor word; do echo "$word"; done\n')
    srun.chmod(0o755)
    asked = dict(GPUS='16', GPUS_PER_NODE='4', CPUS_PER_TASK='6', PORT='12345')
    asked |= {'SRUN_ARGS': '--time=1:00:00 --exclusive', 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
    script = ['bash', ROOT / 'tools' / argv[0], *argv[1:]]
    run = subprocess.run(script, env=os.environ | asked, capture_output=True, text=True, check=True)
    words = run.stdout.splitlines()
    separator = words.index('python')
    assert words[:separator] == [
        *('port 12345', '-p', 'gpu', '--job-name=a job', '--gres=gpu:4', '--ntasks=16'),
        *('--ntasks-per-node=4', '--cpus-per-task=6', '--kill-on-bad-exit=1'),
        *('--time=1:00:00', '--exclusive'),
    ]
    unbuffered, tool, *arguments = words[separator + 1 :]
    assert unbuffered == '-u'
    assert [Path(tool).name, *arguments] == command


@pytest.mark.skipif(get_device() != 'cpu', reason='with a GPU, Slurm is asked')
def test_slurm_needs_a_gpu(fails: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, torchrun starts the processes."""
    monkeypatch.setenv('SLURM_PROCID', '0')
    message = fails(TRAIN, 'cls.py', '--launcher', 'slurm')
    assert "launcher 'slurm' needs a GPU and none was found" in message
