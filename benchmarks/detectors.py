"""Whole dense models: Mask R-CNN and UperNet around LaViT and around Swin-T."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Row, Size, show_size
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from subjects import LAVIT, REFERENCE, subjects_of
from timing import Setting, Spread, interleave
from torch import nn

from mmlavit.models.backbones.arch import ARCHS

ROOT = Path(__file__).resolve().parents[1]
# Config and toolbox.
DETECTORS = {
    'Mask R-CNN': ('configs/detection/mask-rcnn_lavit-small_fpn_1x_coco.py', 'mmdet'),
    'UperNet': ('configs/segmentation/lavit-small_upernet_8xb2-160k_ade20k-512x512.py', 'mmseg'),
}


def time_detectors(arch: str, sizes: Sequence[Size], setting: Setting) -> list[Row]:
    """Predict with LaViT and with Swin-T in the same model, from pixels to results.

    Args:
        arch: LaViT's.
        sizes: ``(h, w)`` of the images.
        setting: How.

    Returns:
        One row a model, size and backbone.
    """
    subjects = subjects_of(arch, [])
    rows: list[Row] = []
    for task in DETECTORS:
        detectors = {
            name: build_detector(task, subjects[name].config, setting.device)
            for name in (LAVIT, REFERENCE)
        }
        for size in sizes:
            predict = {
                name: predictor(task, model, size, setting.device)
                for name, model in detectors.items()
            }
            boxes = {}
            calls: dict[str, Callable[[], object]] = {}
            for name, call in predict.items():
                result = in_precision(call, setting)[0]
                boxes[name] = len(result.pred_instances) if 'pred_instances' in result else None
                calls[name] = partial(in_precision, call, setting)
            seconds = interleave(calls, setting, f'{task} {show_size(size)}')
            for name, mine in seconds.items():
                milliseconds = Spread.of(1000 * mine)
                ratio = Spread.of(seconds[REFERENCE] / mine)
                rows.append(
                    dict(part='models', model=task, backbone=name, size=show_size(size),
                         milliseconds=milliseconds._asdict(), speed_over_swin=ratio._asdict(),
                         boxes=boxes[name])
                )  # fmt: skip
    return rows


def in_precision(call: Callable[[], list[Any]], setting: Setting) -> list[Any]:
    """Call as a test loop does."""
    with torch.no_grad(), setting.precision():
        return call()


def build_detector(name: str, backbone: dict[str, Any], device: torch.device) -> nn.Module:
    """Build one of our dense models around any of the backbones, for prediction.

    Args:
        name: Key of :data:`DETECTORS`.
        backbone: Config of LaViT or of Swin-T.
        device: Where to put it.
    """
    MMLogger.get_current_instance().setLevel('ERROR')
    path, toolbox = DETECTORS[name]
    model = Config.fromfile(ROOT / path).model
    arch = backbone.get('arch')
    channels = list(ARCHS[arch].channels) if arch else [96, 192, 384, 768]
    model.backbone = dict(backbone, init_cfg=None)
    if toolbox == 'mmdet':
        model.neck.in_channels = channels
    else:
        model.decode_head.in_channels = channels
        model.auxiliary_head.in_channels = channels[model.auxiliary_head.in_index]
    init_default_scope(toolbox)
    detector = revert_sync_batchnorm(MODELS.build(model))
    detector.init_weights()
    return detector.to(device).eval()


def predictor(
    name: str, detector: Any, size: tuple[int, int], device: torch.device
) -> Callable[[], list[Any]]:
    """Prepare the prediction of one image as a test loop makes it, from pixels to results.

    Args:
        name: Key of :data:`DETECTORS`.
        detector: That model.
        size: ``(h, w)`` of the image.
        device: Where the model is.
    """
    if name == 'Mask R-CNN':
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample
    image = torch.randint(256, (3, *size), dtype=torch.uint8, device=device)
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))

    def predict() -> list[Any]:
        return detector.test_step(dict(inputs=[image], data_samples=[Sample(metainfo=meta)]))

    return predict
