"""Configs as the tools read them: checked, with the options of the command line merged in."""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.utils import ConfigParsingError
from mmengine.device import get_device
from mmengine.runner import find_latest_checkpoint

from mmlavit.checkpoints import check_checkpoint
from mmlavit.checks.config import (
    LOADERS,
    check_work_dir,
    missing_paths,
    misspelt_keys,
    wrong_ann_files,
)
from mmlavit.errors import UserError

from .overrides import merge_overrides
from .parsers import LAUNCHER_VARIABLES

__all__ = ['check_gpu', 'load_config', 'read_config', 'require', 'training_config']

TOOLBOXES = ('mmpretrain', 'mmdet', 'mmseg')


def read_config(path: str, overrides: dict[str, Any] | None) -> Config:
    """Read a config of one of the toolboxes, and merge what ``--cfg-options`` gave.

    Raises:
        UserError: If the config cannot be read, is for none of the toolboxes, or an override leads
            nowhere.
    """
    if not Path(path).is_file():
        raise UserError(f'config file {path!r} does not exist')
    try:
        cfg = Config.fromfile(path)
    except ConfigParsingError as error:
        raise UserError(f'config file {path!r} cannot be read: {error}') from error
    except Exception as error:
        # A config is Python, and what it runs into is named by the type.
        hint = ''
        if 'custom modules' in str(error):
            hint = '; PYTHONPATH=. lets modules of the working directory be found'
        text = f'{type(error).__name__}: {str(error).partition(chr(10))[0]}'
        raise UserError(f'config file {path!r} cannot be read: {text}{hint}') from error
    merge_overrides(cfg, overrides or {})
    scope = cfg.get('default_scope')
    if scope not in TOOLBOXES:
        raise UserError(
            f'{path}: default_scope is {scope!r}, expected one of {", ".join(TOOLBOXES)}'
        )
    if find_spec(scope) is None:
        raise UserError(f'{path}: default_scope is {scope!r}, which is not installed')
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """Read the config, then merge into it the options that training and testing share.

    Raises:
        UserError: As :func:`read_config`, or if the launcher did not start this process.
    """
    variable = LAUNCHER_VARIABLES[args.launcher]
    if variable is not None and variable not in os.environ:
        raise UserError(
            f'--launcher {args.launcher}: {variable} is not set, so no such launcher started this '
            'process; use the scripts dist_*.sh and slurm_*.sh'
        )
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    for name in LOADERS:
        loader = cfg.get(name)
        if not isinstance(loader, ConfigDict):
            continue
        if cfg.default_scope == 'mmpretrain':
            # mmpretrain's configs rely on its tools for these.
            loader.setdefault('pin_memory', True)
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))
        if args.no_pin_memory:
            loader.pin_memory = False
        if args.no_persistent_workers:
            loader.persistent_workers = False
    check_work_dir(cfg.work_dir)
    return cfg


def training_config(args: argparse.Namespace) -> Config:
    """Read the config of a run, with all options of training merged in.

    Raises:
        UserError: As :func:`load_config` and :func:`require`, or if an option does not fit the
            config.
    """
    cfg = load_config(args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    require(cfg, 'model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    validation = ('val_dataloader', 'val_cfg', 'val_evaluator')
    if any(cfg.get(key) is not None for key in validation):
        require(cfg, *validation)
    if args.amp:
        check_gpu()
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        name = kind if isinstance(kind, str) else kind.__name__
        if name.removeprefix('mmengine.') not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise UserError(f'--amp: optim_wrapper.type is {name!r}, expected OptimWrapper')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if (cfg.get('auto_scale_lr') or {}).get('base_batch_size') is None:
            raise UserError(f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    # mmengine's tools forget load_from here, also where there is nothing to resume yet
    begins = (
        args.resume == 'auto' and cfg.get('load_from') and not find_latest_checkpoint(cfg.work_dir)
    )
    if args.resume and not begins:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
    return cfg


def check_gpu() -> None:
    """Stop where mixed precision cannot run.

    Raises:
        UserError: If there is no GPU.
    """
    if get_device() == 'cpu':
        raise UserError('--amp needs a GPU, and torch finds none')


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
    for message in misspelt_keys(cfg):
        raise UserError(f'{cfg.filename}: {message}')
    missing = [key for key in keys if cfg.get(key) is None]
    if missing:
        raise UserError(f'{cfg.filename}: {", ".join(missing)} must be set')
    for key in keys:
        # Several metrics are a list.
        kinds = (dict, list) if key.endswith('_evaluator') else dict
        if not isinstance(cfg[key], kinds):
            raise UserError(f'{cfg.filename}: {key} is {cfg[key]!r}, expected a dictionary')
        if key.endswith('_dataloader'):
            for message in missing_paths(cfg, key) + wrong_ann_files(cfg, key):
                raise UserError(message)
