"""Train a model of mmpretrain, mmdet or mmseg."""

from argparse import Namespace
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import find_latest_checkpoint

from mmlavit.engine import StrictLoadHook, UserError, add_dataset_check
from mmlavit.engine.launch import (
    ToolParser,
    build_runner,
    check_checkpoint,
    load_config,
    require,
    run_tool,
)


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
    set_mixed_precision(cfg, args.amp, get_device())
    if args.auto_scale_lr:
        scale_learning_rate(cfg)
    checkpoint = args.resume or (cfg.get('resume') and (cfg.get('load_from') or 'auto'))
    if checkpoint:
        resume(cfg, checkpoint)
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
    runner = build_runner(cfg)
    add_dataset_check(runner)
    if cfg.get('resume'):
        runner.register_hook(StrictLoadHook())
    runner.train()


def set_mixed_precision(cfg: Config, enable: bool, device: str) -> None:
    """Choose the optimizer wrapper for mixed precision.

    ``AmpOptimWrapper`` does not run on a CPU, whoever asked for it; ``BFloat16OptimWrapper`` does.

    Args:
        cfg: The config, changed in place.
        enable: Whether to turn mixed precision on where the config does not.
        device: Type of the device to train on, as ``'cuda'``.

    Raises:
        UserError: If the config has an optimizer wrapper of another kind, or the model cannot train
            in bfloat16.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    name = (
        (kind if isinstance(kind, str) else kind.__name__)
        .removeprefix('mmengine.')
        .removeprefix('mmlavit.')
    )
    if enable:
        if name not in ('OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper'):
            raise UserError(
                f'--amp: optim_wrapper.type is {name!r}, expected OptimWrapper or AmpOptimWrapper'
            )
        if name == 'OptimWrapper':
            name = wrapper.type = 'AmpOptimWrapper'
            wrapper.setdefault('loss_scale', 'dynamic')
    if name == 'AmpOptimWrapper' and device == 'cpu':
        if cfg.model.get('roi_head'):
            raise UserError(
                'mixed precision without a GPU is bfloat16, which RoIAlign of mmcv cannot read: '
                'train this detector in float32, or on a GPU'
            )
        wrapper.type = 'mmlavit.BFloat16OptimWrapper'
        for key in ('loss_scale', 'dtype'):
            wrapper.pop(key, None)


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


def resume(cfg: Config, checkpoint: str) -> None:
    """Resume from a checkpoint; ``'auto'`` starts as if not resumed where there is none yet.

    Args:
        cfg: The config, changed in place.
        checkpoint: A path or URL, or ``'auto'`` for the latest one in the work dir.

    Raises:
        UserError: If the latest checkpoint is not where the work dir says.
    """
    if checkpoint == 'auto':
        latest = find_latest_checkpoint(cfg.work_dir)
        if latest is None:
            cfg.resume = False
            return
        check_checkpoint(latest, f'the checkpoint that {cfg.work_dir}/last_checkpoint names,')
        checkpoint = latest
    cfg.resume = True
    cfg.load_from = checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), train, argv)


if __name__ == '__main__':
    main()
