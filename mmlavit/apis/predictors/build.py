"""Build the predictor of a toolbox from a config and a checkpoint."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, init_default_scope

from mmlavit.checks.build import config_errors
from mmlavit.errors import UserError
from mmlavit.models.key_differences import check_belongs

from .base import Predictor
from .classifier import Classifier
from .detector import Detector
from .segmentor import Segmentor

__all__ = ['build_predictor']

PREDICTORS: dict[str, type[Predictor]] = {
    'mmpretrain': Classifier,
    'mmdet': Detector,
    'mmseg': Segmentor,
}


def build_predictor(
    cfg: Config, weights: str, checkpoint: dict[str, Any], device: str, out: Path
) -> Predictor:
    """Build the predictor of a toolbox.

    Args:
        cfg: The config, changed in place.
        weights: File or URL of a checkpoint.
        checkpoint: What it holds.
        device: Name of the device to predict on.
        out: Folder of the results.

    Raises:
        UserError: If the config lacks a key, a constructor refuses a value of it, the checkpoint
            does not belong to the model, or neither names the classes.
    """
    scope = cfg.default_scope
    init_default_scope(scope)
    missing = [key for key in ('model', 'test_dataloader') if cfg.get(key) is None]
    if missing:
        raise UserError(f'{cfg.filename}: {", ".join(missing)} must be set')
    if cfg.get('data_preprocessor'):
        # The runner does so too, the inferencers of mmdet and mmseg do not.
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with config_errors(cfg):
        model = MODELS.build(deepcopy(cfg.model))
    check_belongs(checkpoint, model, weights)
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    cfg.test_dataloader.dataset = dataset
    with config_errors(cfg):
        classes, palette = _dataset_meta(dataset, checkpoint.get('meta') or {}, weights)
    if scope != 'mmpretrain':
        kind = 'DetLocalVisualizer' if scope == 'mmdet' else 'SegLocalVisualizer'
        cfg.setdefault('visualizer', ConfigDict(type=kind)).vis_backends = []
    with config_errors(cfg):
        return PREDICTORS[scope](cfg, weights, classes, palette, device, out)


def _dataset_meta(
    dataset: ConfigDict, meta: dict[str, Any], weights: str
) -> tuple[list[str], list[tuple[int, int, int]]]:
    metainfo = meta.get('dataset_meta') or {}
    if not metainfo.get('classes'):
        metainfo = DATASETS.build({**dataset, 'lazy_init': True}).metainfo
    classes = metainfo.get('classes')
    if not classes:
        raise UserError(
            f'neither {weights} (meta.dataset_meta.classes) nor test_dataloader.dataset.metainfo '
            'of the config names the classes'
        )
    palette = metainfo.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) != len(classes):
        palette = np.random.RandomState(42).randint(0, 256, (len(classes), 3)).tolist()
    colors = [(int(red), int(green), int(blue)) for red, green, blue in palette]
    return [str(name) for name in classes], colors
