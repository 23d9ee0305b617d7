"""Build the model of a config outside a runner, for an image of a given size."""

from argparse import ArgumentParser, Namespace
from copy import deepcopy

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmlavit.checks.build import config_errors
from mmlavit.errors import UserError

__all__ = ['add_shape', 'build_plain_model', 'shape_of_image']

SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1344), 'mmseg': (512, 512)}


def add_shape(parser: ArgumentParser) -> None:
    """Add the option that names the size of the image.

    Args:
        parser: Parser of a tool.
    """
    defaults = ', '.join(f'{h} {w} for {toolbox}' for toolbox, (h, w) in SHAPES.items())
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help=f'height and width of the image in pixels, by default {defaults}',
    )


def shape_of_image(args: Namespace, cfg: Config) -> tuple[int, int]:
    """Height and width of the image in pixels.

    Args:
        args: What a parser with :func:`add_shape` returned.
        cfg: The config.

    Raises:
        UserError: If one of them is below 1.
    """
    height, width = args.shape or SHAPES[cfg.default_scope]
    if min(height, width) < 1:
        raise UserError(f'--shape {height} {width}: expected two positive numbers')
    return height, width


def build_plain_model(cfg: Config) -> nn.Module:
    """Build the model of a config, without loading weights.

    Args:
        cfg: The config.

    Raises:
        UserError: If there is no model, a constructor refuses a value, or it has no backbone.
    """
    if cfg.get('model') is None:
        raise UserError(f'{cfg.filename}: model must be set')
    init_default_scope(cfg.default_scope)
    config = deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        config.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    with config_errors(cfg):
        model = MODELS.build(config)
    if not hasattr(model, 'extract_feat') or not hasattr(model, 'backbone'):
        kind = type(model).__name__
        raise UserError(f'{cfg.filename}: model is a {kind}, expected one with a backbone')
    return model
