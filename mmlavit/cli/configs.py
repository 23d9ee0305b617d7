"""Configs as the tools read them: checked, with the options of the command line merged in."""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.utils import ConfigParsingError
from mmengine.device import get_device

from mmlavit.checks.config import missing_paths, misspelt_keys, wrong_ann_files
from mmlavit.errors import UserError

from .overrides import merge_overrides
from .parsers import LAUNCHER_VARIABLES

TOOLBOXES = ('mmpretrain', 'mmdet', 'mmseg')


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
