"""Export a classifier, a segmentor, or the backbone of any model to ONNX.

The graph takes images (batch, channels, height, width) that are normalized as the config's data
preprocessor does it; the file carries those settings and the names of the classes as metadata.

  classifier      logits (batch, classes)
  segmentor       logits (batch, classes, height, width), or with --argmax the class of each pixel
                  (batch, height, width)
  --backbone-only one map for each output of the backbone, or of the neck (FPN) behind it

Detectors go with --backbone-only: their heads choose regions, whose number depends on the image.
The file is written when onnxruntime gives what PyTorch gives, to 1e-4 of the largest output or of
1 (labels: in all but 1e-4 of the pixels). Exit code 1: it does not, or the model cannot be
exported; 2: wrong arguments. Nothing is written then.
"""

import json
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmlavit.apis.images import channels_of
from mmlavit.apis.onnx_export import ExportError, check_packages, export_onnx
from mmlavit.atomic_backend import AtomicBackend
from mmlavit.cli.configs import read_config
from mmlavit.cli.launch import run_tool
from mmlavit.cli.parsers import LineParser
from mmlavit.cli.plain_model import add_shape, load_plain_model, shape_of_image
from mmlavit.errors import UserError

NORMALIZATION = ('mean', 'std', 'to_rgb', 'bgr_to_rgb', 'rgb_to_bgr')


class Features(nn.Module):
    """From images ``(B, C, h, w)`` to the maps of the backbone, or of the neck behind it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone = model.backbone
        # a classifier's neck is its pooling
        self.neck = None if hasattr(model, 'head') else getattr(model, 'neck', None)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone(image)
        return tuple(maps if self.neck is None else self.neck(maps))


class Classifier(nn.Module):
    """From images ``(B, C, h, w)`` to logits ``(B, classes)``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image, mode='tensor')


class Segmentor(Classifier):
    """From images ``(B, C, h, w)`` to logits ``(B, classes, h, w)``, as mmseg's inference."""

    def forward(self, image: Tensor) -> Tensor:
        logits = super().forward(image)
        size, corners = image.shape[2:], self.model.align_corners
        return F.interpolate(logits, size=size, mode='bilinear', align_corners=corners)


class Labels(Segmentor):
    """From images ``(B, C, h, w)`` to indices of classes ``(B, h, w)``, as mmseg's prediction."""

    def forward(self, image: Tensor) -> Tensor:
        logits = super().forward(image)
        if self.model.out_channels > 1:
            return logits.argmax(1)
        return (logits.squeeze(1).sigmoid() > self.model.decode_head.threshold).long()


def build_parser() -> LineParser:
    """Describe the command line."""
    parser = LineParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmpretrain, mmdet or mmseg')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out', type=Path, required=True, help='file to write, as model.onnx')
    add_shape(parser)
    for name, text in (
        ('--overwrite', 'replace --out if it exists'),
        ('--dynamic-batch', 'take any number of images'),
        ('--dynamic-size', 'take images of any size; of segmentors only with --backbone-only'),
        ('--backbone-only', 'leave the heads out, and return maps'),
        ('--argmax', 'return the class of each pixel; segmentors'),
    ):
        parser.add_argument(name, action='store_true', help=text)
    parser.add_cfg_options()
    parser.add_trust_checkpoint()
    return parser


def export(args: Namespace) -> None:
    """Export as the arguments say; exit with 1 if the graph does not compute the same."""
    check_packages()
    if args.out.is_dir() or (args.out.exists() and not args.overwrite):
        raise UserError(f'--out {str(args.out)!r} exists; --overwrite replaces a file')
    MMLogger.get_instance('export', log_level='WARNING')
    cfg = read_config(args.config, args.cfg_options)
    size = shape_of_image(args, cfg)
    check_options(args, cfg.default_scope)
    model, metainfo = load_plain_model(cfg, args.checkpoint)
    shape = (channels_of(model), *size)
    module, names = choose(model, args, cfg.default_scope)
    dynamic = {'dynamic_batch': args.dynamic_batch, 'dynamic_size': args.dynamic_size}
    try:
        result = export_onnx(module, shape, names, metadata=describe(cfg, metainfo), **dynamic)
    except ExportError as error:
        print(f'export_onnx.py: {error}; nothing was written', file=sys.stderr)
        raise SystemExit(1) from error
    AtomicBackend().put(result.content, args.out)
    sizes = ', '.join('x'.join(map(str, size)) for size in result.shapes)
    print(f'compared with onnxruntime on images of {sizes}: {result.difference:.1e} at most')
    megabytes = len(result.content) / 2**20
    print(f'written: {args.out} ({megabytes:.1f} MiB), image -> {", ".join(names)}')


def check_options(args: Namespace, scope: str) -> None:
    """Raise a ``UserError`` where options do not fit the toolbox of the config."""
    if scope == 'mmdet' and not args.backbone_only:
        raise UserError(
            'the heads of a detector are not exported: proposals, RoIAlign and NMS keep as many '
            'regions as the image gives. --backbone-only exports the backbone with the neck'
        )
    if args.argmax and (scope != 'mmseg' or args.backbone_only):
        raise UserError('--argmax: needs a config of mmseg, and no --backbone-only')
    if args.dynamic_size and scope == 'mmseg' and not args.backbone_only:
        raise UserError(
            "--dynamic-size: mmseg's heads write the size of the example into the graph; export "
            'one file a size, or the backbone with --backbone-only'
        )


def choose(model: nn.Module, args: Namespace, scope: str) -> tuple[nn.Module, list[str]]:
    """What to export of a model, and the names of its outputs."""
    if args.backbone_only:
        features = Features(model)
        with torch.no_grad():
            count = len(features(torch.zeros(1, channels_of(model), 64, 64)))
        return features, [f'map{i}' for i in range(count)]
    if scope == 'mmpretrain':
        return Classifier(model), ['logits']
    return (Labels(model), ['labels']) if args.argmax else (Segmentor(model), ['logits'])


def describe(cfg: Config, metainfo: dict[str, Any]) -> dict[str, str]:
    """What a user of the file must know, as JSON texts by name."""
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    normalization = {key: preprocessor[key] for key in NORMALIZATION if key in preprocessor}
    classes = json.dumps(list(metainfo.get('classes') or []))
    return {'normalization': json.dumps(normalization), 'classes': classes}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), export, argv)


if __name__ == '__main__':
    main()
