"""Train a model of mmpretrain, mmdet or mmseg."""

import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.runner import Runner

from mmlavit.checkpoints import check_checkpoint
from mmlavit.cli.amp import enable_amp
from mmlavit.cli.configs import load_config, require
from mmlavit.cli.launch import build_runner, run_tool
from mmlavit.cli.parsers import ToolParser
from mmlavit.engine import (
    FiniteLossHook,
    PartialLoadHook,
    PreemptionHook,
    SeedHook,
    StrictLoadHook,
    add_dataset_check,
)
from mmlavit.engine.runner.resume import resume
from mmlavit.errors import UserError


def build_parser() -> ToolParser:
    """Add the options of training to the shared ones."""
    parser = ToolParser('Train a model of mmpretrain, mmdet or mmseg.')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint; without a value, from the latest one in the work dir',
    )
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during training'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size over auto_scale_lr.base_batch_size',
    )
    return parser


def train(args: Namespace) -> None:
    """Train as the arguments say.

    Raises:
        UserError: If the arguments do not fit the config, or files are missing.
    """
    cfg = load_config(args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    require(cfg, 'model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    if cfg.get('val_dataloader') is not None:
        require(cfg, 'val_dataloader')
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        scale_learning_rate(cfg)
    warnings = resume(cfg, args.resume)
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
    runner = build_runner(cfg)
    for warning in warnings:
        runner.logger.warning(f'--resume: {warning}')
    add_dataset_check(runner)
    runner.register_hook(StrictLoadHook() if cfg.get('resume') else PartialLoadHook())
    with fault_hooks(runner):
        runner.train()


@contextmanager
def fault_hooks(runner: Runner) -> Iterator[None]:
    """Register the hooks that make faults harmless, unless the config has them.

    They need mmengine's hook points only, and serve a ``runner_type`` of the config as well.

    Args:
        runner: The runner that trains within the context.
    """
    for kind in (SeedHook, FiniteLossHook, PreemptionHook):
        if not any(isinstance(hook, kind) for hook in runner.hooks):
            runner.register_hook(kind())
    try:
        yield
    finally:
        for hook in runner.hooks:
            if isinstance(hook, PreemptionHook):
                hook.signals.release()


def scale_learning_rate(cfg: Config) -> None:
    """Let the runner scale the learning rate.

    Args:
        cfg: The config, changed in place.

    Raises:
        UserError: If the config does not say for which batch size its learning rate is.
    """
    if (cfg.get('auto_scale_lr') or {}).get('base_batch_size') is None:
        raise UserError(f'--auto-scale-lr: {cfg.filename} has no auto_scale_lr.base_batch_size')
    cfg.auto_scale_lr.enable = True


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    try:
        run_tool(build_parser(), train, argv)
    except KeyboardInterrupt:
        print(
            'train.py: interrupted before training began; no checkpoint was written',
            file=sys.stderr,
        )
        sys.exit(128 + signal.SIGINT)


if __name__ == '__main__':
    main()
