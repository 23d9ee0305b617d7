"""Run a tool, and build the runner that it drives."""

import argparse
import errno
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence

import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmlavit.checkpoints import safe_loading
from mmlavit.checks.build import config_errors
from mmlavit.checks.config import check_work_dir
from mmlavit.engine.runner.portable_runner import PortableRunner
from mmlavit.errors import UserError

from .parsers import LineParser

# Of writing to a full disk, or beyond a quota.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


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
