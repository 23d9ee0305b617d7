"""Parsers of the tools: the options that they share, and errors of one line."""

import argparse
import sys
from typing import NoReturn

from .overrides import OverrideAction

__all__ = ['LAUNCHER_VARIABLES', 'LineParser', 'ToolParser', 'TrainingParser']

# What each launcher sets in the environment of its processes.
LAUNCHER_VARIABLES = {
    'none': None,
    'pytorch': 'RANK',
    'slurm': 'SLURM_PROCID',
    'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK',
}


class LineParser(argparse.ArgumentParser):
    """A parser whose errors take one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print one message without the usage."""
        self._print_message(f'{self.prog}: error: {message}\n', sys.stderr)
        self.exit(2)

    def add_cfg_options(
        self, text: str = 'override keys of the config; lists as KEY="[a,b]", without spaces'
    ) -> None:
        """Add the option that overrides keys of the config, with what the help says of it."""
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
        self.add_cfg_options()
        self.add_argument('--amp', action='store_true', help='mixed precision, on a GPU')
        self.add_argument(
            '--launcher', choices=LAUNCHER_VARIABLES, default='none', help='job launcher'
        )
        for name in ('pin-memory', 'persistent-workers'):
            self.add_argument(
                f'--no-{name}', action='store_true', help='switch it off in the dataloaders'
            )
        self.add_trust_checkpoint()
        self.add_argument(
            '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
        )


class TrainingParser(ToolParser):
    """The options of training, for what trains and what checks it."""

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.add_argument(
            '--resume',
            nargs='?',
            const='auto',
            metavar='CHECKPOINT',
            help='resume from a checkpoint; without a value, from the latest one in the work dir',
        )
        self.add_argument(
            '--no-validate', action='store_true', help='do not evaluate during training'
        )
        self.add_argument(
            '--auto-scale-lr',
            action='store_true',
            help='scale the learning rate by the batch size over auto_scale_lr.base_batch_size',
        )
