"""Parsers of the tools: the options that they share, and errors of one line."""

import argparse
import os
import signal
import sys
import time
from typing import NoReturn

from .overrides import OverrideAction

# What each launcher sets in the environment of its processes.
LAUNCHER_VARIABLES = {
    'none': None,
    'pytorch': 'RANK',
    'slurm': 'SLURM_PROCID',
    'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK',
}

SECONDS_FOR_FIRST_RANK = float(os.environ.get('MMLAVIT_SECONDS_FOR_FIRST_RANK', '5'))


class LineParser(argparse.ArgumentParser):
    """A parser whose errors take one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print one message and exit with code 2; with several processes, after the first one."""
        self.explain(message)
        self.exit(2)

    def explain(self, message: str) -> None:
        """Print why the tool stops; with several processes, after the first one.

        Args:
            message: What is wrong.
        """
        _yield_to_first_rank()
        self._print_message(f'{self.prog}: error: {message}\n', sys.stderr)

    def add_cfg_options(
        self, text: str = 'override keys of the config, as tools/test.py does'
    ) -> None:
        """Add the option that overrides keys of the config.

        Args:
            text: What the help says of it.
        """
        self.add_argument(
            '--cfg-options', nargs='+', action=OverrideAction, metavar='KEY=VALUE', help=text
        )

    def add_trust_checkpoint(self) -> None:
        """Add the option with which a tool loads checkpoints that may run code."""
        self.add_argument(
            '--trust-checkpoint',
            action='store_true',
            help='load checkpoints that hold more than data, and run whatever code they name',
        )


class ToolParser(LineParser):
    """The options that training and testing share.

    Args:
        description: First line of the help.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description=description)
        self.add_argument('config', help='config file of mmpretrain, mmdet or mmseg')
        self.add_argument('--work-dir', help='logs and checkpoints go here')
        self.add_cfg_options(
            'override keys of the config; lists as KEY="[a,b]" or KEY=a,b, without spaces'
        )
        self.add_argument('--amp', action='store_true', help='mixed precision, on a GPU')
        self.add_argument(
            '--launcher', choices=LAUNCHER_VARIABLES, default='none', help='job launcher'
        )
        self.add_argument(
            '--no-pin-memory', action='store_true', help='switch off pin_memory of the dataloaders'
        )
        self.add_argument(
            '--no-persistent-workers',
            action='store_true',
            help='switch off persistent_workers of the dataloaders',
        )
        self.add_trust_checkpoint()
        # torch.distributed.launch passes --local-rank; torchrun sets LOCAL_RANK.
        self.add_argument(
            '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
        )


def _yield_to_first_rank() -> None:
    # What is wrong is wrong in every process as a rule. When the first one says so and exits, the
    # launcher ends the others, which wait here; one that fails alone speaks afterwards.
    if any(os.environ.get(name, '0') != '0' for name in LAUNCHER_VARIABLES.values() if name):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SECONDS_FOR_FIRST_RANK)
