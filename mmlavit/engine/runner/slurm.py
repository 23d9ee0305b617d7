"""Let the processes of a Slurm job find each other as those of torchrun do."""

import os
import subprocess

from mmlavit.errors import UserError

__all__ = ['set_variables_from_slurm']


def set_variables_from_slurm() -> None:
    """Set the variables that torch's ``env://`` reads from those of Slurm.

    mmengine does the same before it selects a GPU, which it cannot do without one. An address and a
    port that are set already stay.

    Raises:
        UserError: If a variable of Slurm is missing, or the first machine cannot be found out.
    """
    try:
        rank, size = os.environ['SLURM_PROCID'], os.environ['SLURM_NTASKS']
        local_rank = os.environ['SLURM_LOCALID']
        address = os.environ.get('MASTER_ADDR') or _first_host(os.environ['SLURM_NODELIST'])
    except KeyError as error:
        raise UserError(
            f'launcher slurm: {error.args[0]} is not set; start the processes by srun, as '
            'tools/slurm_*.sh do'
        ) from error
    os.environ.update(RANK=rank, WORLD_SIZE=size, LOCAL_RANK=local_rank, MASTER_ADDR=address)
    os.environ.setdefault('MASTER_PORT', '29500')


def _first_host(nodes: str) -> str:
    command = ['scontrol', 'show', 'hostnames', nodes]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f'launcher slurm: {" ".join(command)!r} does not name the first machine of the job: '
            f'{error}; set MASTER_ADDR'
        ) from error
