"""Build the model of a config outside a runner, for an image of a given size."""

from argparse import ArgumentParser, Namespace
from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_state_dict
from torch import nn

from mmlavit.checkpoints import read_checkpoint, state_dict_of
from mmlavit.errors import UserError
from mmlavit.models.key_differences import check_belongs

__all__ = ['add_shape', 'build_plain_model', 'load_plain_model', 'shape_of_image']

SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1344), 'mmseg': (512, 512)}


def add_shape(parser: ArgumentParser) -> None:
    """Add the option that names the size of the image."""
    defaults = ', '.join(f'{h} {w} for {toolbox}' for toolbox, (h, w) in SHAPES.items())
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help=f'height and width of the image in pixels, by default {defaults}',
    )


def shape_of_image(args: Namespace, cfg: Config) -> tuple[int, int]:
    """Height and width in pixels that :func:`add_shape` was given, or those of the toolbox.

    Raises:
        UserError: If one of them is below 1.
    """
    height, width = args.shape or SHAPES[cfg.default_scope]
    if min(height, width) < 1:
        raise UserError(f'--shape {height} {width}: expected two positive numbers')
    return height, width


def build_plain_model(cfg: Config) -> nn.Module:
    """Build the model of a config, without loading weights.

    Raises:
        UserError: If there is no model, or it has no backbone.
    """
    if cfg.get('model') is None:
        raise UserError(f'{cfg.filename}: model must be set')
    init_default_scope(cfg.default_scope)
    config = deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        config.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    model = MODELS.build(config)
    if not hasattr(model, 'extract_feat') or not hasattr(model, 'backbone'):
        kind = type(model).__name__
        raise UserError(f'{cfg.filename}: model is a {kind}, expected one with a backbone')
    return model


def load_plain_model(cfg: Config, path: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a config with the weights of a checkpoint, to predict on one device.

    Args:
        path: File or URL.

    Returns:
        The model in evaluation mode, and what the checkpoint says of the dataset.

    Raises:
        UserError: If there is no such model, or the checkpoint does not belong to it.
    """
    checkpoint = read_checkpoint(path)
    model = build_plain_model(cfg)
    check_belongs(checkpoint, model, path)
    load_state_dict(model, state_dict_of(checkpoint), strict=False, logger='silent')
    metainfo = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    return revert_sync_batchnorm(model).eval(), metainfo
