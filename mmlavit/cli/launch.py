"""Run a tool, and build the runner that it drives."""

import argparse
import errno
import gc
import logging
import os
import traceback
from collections.abc import Callable, Sequence

import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import RUNNERS, build_from_cfg
from mmengine.runner import Runner
from torch.distributed.elastic.multiprocessing.errors import record

from mmlavit.checkpoints import safe_loading
from mmlavit.errors import UserError

from .parsers import LineParser

__all__ = ['build_runner', 'explain', 'run_tool']

# Of files that may not be used, and of writing to a full disk or beyond a quota.
FILE_ERRORS = (errno.EACCES, errno.ENOSPC, errno.EDQUOT)


def run_tool(
    parser: LineParser, tool: Callable[[argparse.Namespace], None], argv: Sequence[str] | None
) -> None:
    """Parse the arguments and run a tool, reporting what the user can repair without a traceback.

    Args:
        parser: Parser of the tool.
        tool: Called with the parsed arguments.
        argv: Arguments, ``sys.argv[1:]`` if None.

    Raises:
        SystemExit: With code 2 if there was something to report (see :func:`explain`), with its own
            code if the tool exits.
    """
    args = parser.parse_args(argv)
    # torch.distributed.launch passes --local-rank; torchrun sets the variable.
    os.environ.setdefault('LOCAL_RANK', str(getattr(args, 'local_rank', 0)))
    # A log that finds no room would print a traceback a line; what else is written stops the run.
    logging.raiseExceptions = False
    try:
        problem = _run(tool, args)
    finally:
        _leave_process_group()
    if problem is not None:
        parser.error(problem)


@record  # so that torchrun shows the traceback of the process that failed first
def _run(tool: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> str | None:
    try:
        with safe_loading(trust=getattr(args, 'trust_checkpoint', False)):
            tool(args)
    except Exception as error:
        problem = explain(error)
        if problem is None:
            raise
        return problem
    return None


def explain(error: Exception) -> str | None:
    """What to tell of an error without its traceback; None where it may be a bug.

    That is the message of a ``UserError``, the path of a file that cannot be used, and Python's
    own message where a config's object could not be built.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in FILE_ERRORS:
        return f'{error.filename or "a file"} cannot be used: {error.strerror}'
    frames = traceback.walk_tb(error.__traceback__)
    built = any(frame.f_code is build_from_cfg.__code__ for frame, _ in frames)
    if not built or not str(error):
        return None
    # the text of a KeyError is quoted
    text = error.args[0] if isinstance(error, KeyError) else error
    return f'{type(error).__name__}: {text}'


def _leave_process_group() -> None:
    # NCCL would make a process that fails wait for the others.
    if not dist.is_initialized() or dist.get_backend() != 'gloo':
        return
    # A thread of gloo that drops a tensor while Python shuts down aborts the process. The model's
    # wrapper holds the group, too. Were it the last to do so, it would wait for these threads while
    # it has Python's lock, which they need.
    gc.collect()
    dist.destroy_process_group()


def build_runner(cfg: Config) -> Runner:
    """Build the runner that ``cfg.runner_type`` names, mmengine's without one."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
