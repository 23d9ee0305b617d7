"""What the tools share: arguments, config, runner and user errors."""

import argparse
import errno
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import ConfigParsingError
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmlavit.checkpoints import check_checkpoint, safe_loading
from mmlavit.checks.build import config_errors
from mmlavit.checks.config import check_work_dir, missing_paths, misspelt_keys, wrong_ann_files
from mmlavit.engine.runner.portable_runner import PortableRunner
from mmlavit.errors import UserError

from .overrides import OverrideAction, merge_overrides

__all__ = [
    'LineParser',
    'ToolParser',
    'build_runner',
    'check_checkpoint',
    'load_config',
    'read_config',
    'require',
    'run_tool',
]

TOOLBOXES = ('mmpretrain', 'mmdet', 'mmseg')

# What each launcher sets in the environment of its processes.
LAUNCHER_VARIABLES = {
    'none': None,
    'pytorch': 'RANK',
    'slurm': 'SLURM_PROCID',
    'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK',
}

SECONDS_FOR_FIRST_RANK = float(os.environ.get('MMLAVIT_SECONDS_FOR_FIRST_RANK', '5'))

# Of writing to a full disk, or beyond a quota.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


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
        self.add_argument(
            '--amp', action='store_true', help='mixed precision: float16, bfloat16 without a GPU'
        )
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


def run_tool(
    parser: LineParser, tool: Callable[[argparse.Namespace], None], argv: Sequence[str] | None
) -> None:
    """Parse the arguments and run a tool, reporting a :class:`UserError` without a traceback.

    Args:
        parser: Parser of the tool.
        tool: Called with the parsed arguments.
        argv: Arguments, ``sys.argv[1:]`` if None.

    Raises:
        SystemExit: With code 2 for a ``UserError``, a full disk or a file that may not be used,
            with its own code if the tool exits.
    """
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(getattr(args, 'local_rank', 0)))
    code, problem = None, None
    # A log that finds no room would print a traceback a line; what else is written stops the run.
    logging.raiseExceptions = False
    try:
        with safe_loading(trust=getattr(args, 'trust_checkpoint', False)):
            tool(args)
    except UserError as error:
        problem = str(error)
    except SystemExit as error:
        code = error.code
    except OSError as error:
        if error.errno not in (*NO_SPACE, errno.EACCES):
            raise
        problem = f'{error.filename or "a file"} cannot be used: {error.strerror}'
    if problem is not None:
        parser.explain(problem)
        code = 2
    # Not earlier: an error that is handled keeps the frames, and these the model, alive.
    _leave_process_group(failed=problem is not None)
    if code is not None:
        sys.exit(code)


def _leave_process_group(failed: bool) -> None:
    # Others may wait for a process that fails, and NCCL would make it wait for them.
    if not dist.is_initialized() or (failed and dist.get_backend() != 'gloo'):
        return
    # A thread of gloo that drops a tensor while Python shuts down aborts the process. The model's
    # wrapper holds the group, too. Were it the last to do so, it would wait for these threads while
    # it has Python's lock, which they need.
    gc.collect()
    dist.destroy_process_group()


def _yield_to_first_rank() -> None:
    # What is wrong is wrong in every process as a rule. When the first one says so and exits, the
    # launcher ends the others, which wait here; one that fails alone speaks afterwards.
    if any(os.environ.get(name, '0') != '0' for name in LAUNCHER_VARIABLES.values() if name):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SECONDS_FOR_FIRST_RANK)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config, then merge into it the options that training and testing share.

    Args:
        args: What a :class:`ToolParser` returned.

    Raises:
        UserError: If the config cannot be read, is for none of the toolboxes, an override leads
            nowhere, or the launcher did not start this process.
    """
    variable = LAUNCHER_VARIABLES[args.launcher]
    if variable is not None and variable not in os.environ:
        raise UserError(
            f'--launcher {args.launcher}: {variable} is not set, so no such launcher started this '
            'process; use the scripts dist_*.sh and slurm_*.sh'
        )
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = (
        args.work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    )
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if isinstance(cfg.get(name), dict):
            _set_dataloader(cfg[name], cfg.default_scope, args)
    return cfg


def read_config(path: str, overrides: dict[str, Any] | None) -> Config:
    """Read a config of one of the toolboxes.

    Args:
        path: The config file.
        overrides: What ``--cfg-options`` gave.

    Raises:
        UserError: If the config cannot be read, is for none of the toolboxes, or an override leads
            nowhere.
    """
    try:
        if not Path(path).is_file():
            raise UserError(f'config file {path!r} does not exist')
        cfg = Config.fromfile(path)
    except UserError:
        raise
    except (ConfigParsingError, ImportError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f'config file {path!r} cannot be read: {error}') from error
    except Exception as error:
        # A config is Python, and what it runs into is named by the type.
        kind = type(error).__name__
        raise UserError(f'config file {path!r} cannot be read: {kind}: {error}') from error
    merge_overrides(cfg, overrides or {})
    scope = cfg.get('default_scope')
    if scope not in TOOLBOXES:
        raise UserError(
            f'{path}: default_scope is {scope!r}, expected one of {", ".join(TOOLBOXES)}'
        )
    if find_spec(scope) is None:
        raise UserError(f'{path}: default_scope is {scope!r}, which is not installed')
    return cfg


def _set_dataloader(dataloader: ConfigDict, scope: str, args: argparse.Namespace) -> None:
    if scope == 'mmpretrain':
        # mmpretrain's configs rely on its tools for these.
        dataloader.setdefault('pin_memory', get_device() != 'cpu')
        dataloader.setdefault('persistent_workers', dataloader.get('num_workers', 0) > 0)
        dataloader.setdefault('collate_fn', ConfigDict(type='default_collate'))
    if args.no_pin_memory:
        dataloader.pin_memory = False
    if args.no_persistent_workers:
        dataloader.persistent_workers = False


def require(cfg: Config, *keys: str) -> None:
    """Stop where a config lacks what a run needs, or where its data is not there.

    Args:
        cfg: The config.
        *keys: Top-level keys that must be set. Local data of those that are dataloaders must
            exist, and what evaluates them must read the same annotation file.

    Raises:
        UserError: If a key or data is missing, a key of the config is a misspelt one of the
            runner's, or an evaluator reads another annotation file.
    """
    misspelt = misspelt_keys(cfg)
    if misspelt:
        raise UserError(f'{cfg.filename}: {misspelt[0]}')
    missing = [key for key in keys if cfg.get(key) is None]
    if missing:
        raise UserError(f'{cfg.filename}: {", ".join(missing)} must be set')
    for key in keys:
        # Several metrics are a list.
        kinds = (dict, list, tuple) if key.endswith('_evaluator') else dict
        if not isinstance(cfg[key], kinds):
            raise UserError(f'{cfg.filename}: {key} is {cfg[key]!r}, expected a dictionary')
        if key.endswith('_dataloader'):
            for message in missing_paths(cfg, key) + wrong_ann_files(cfg, key):
                raise UserError(message)


def build_runner(cfg: Config) -> Runner:
    """Build the runner that ``cfg.runner_type`` names, :class:`PortableRunner` without one.

    Args:
        cfg: The config.

    Raises:
        UserError: If the work dir cannot be written to, or a constructor refuses a value of the
            config; any other error keeps its traceback (see :func:`find_refusal`).
    """
    check_work_dir(cfg.work_dir)
    with config_errors(cfg):
        return RUNNERS.build(cfg) if 'runner_type' in cfg else PortableRunner.from_cfg(cfg)
