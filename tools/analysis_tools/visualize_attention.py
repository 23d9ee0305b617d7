"""Draw the attention of a model of mmpretrain, mmdet or mmseg, and measure it.

--out holds

  attention_xX_yY_stageM.png  what pixel (X, Y) attends to, in each layer and head of a stage
  similarity.png              similarity of the attention of all pairs of layers, a matrix a stage
  saturation.png              the same from each layer to the next, as a curve
  diagonality.png             the two terms of the diagonality-preserving loss, layer by layer
  entropy.png                 how evenly tokens attend, layer by layer: 1 is to all alike
  transforms.png              distance of each Theta and Psi from the identity
  transforms_stageM.png       what they add to the identity; of a second model, ..._second.png
  attention.json              the numbers

Attention lives in windows: a frame shows the one that the pixel is in. docs/attention.md says how
each number is defined.
"""

from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import mmengine
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device

from mmlavit.apis.predict import Predictor
from mmlavit.atomic_backend import AtomicBackend
from mmlavit.cli.arguments import check_device, check_out
from mmlavit.cli.configs import read_config
from mmlavit.cli.launch import run_tool
from mmlavit.cli.parsers import LineParser
from mmlavit.cli.plain_model import load_plain_model
from mmlavit.errors import UserError
from mmlavit.models import LayerTrace, LessAttention
from mmlavit.visualization.attention_figures import draw_reports
from mmlavit.visualization.attention_maps import ImageGeometry, attention_of_point, find_backbone
from mmlavit.visualization.attention_measures import AttentionReport, measure_attention
from mmlavit.visualization.attention_point_figure import draw_attention

DPI = 200
STAGES = (1, 2, 3, 4)


class Attention(NamedTuple):
    """The attention of a model on an image."""

    files: dict[str, str]
    names: tuple[str, str, str]  # for figures: the kind of model, its config and its checkpoint
    picture: np.ndarray  # RGB, shape (height, width, 3)
    geometry: ImageGeometry
    layers: list[LayerTrace]
    report: AttentionReport


def build_parser() -> LineParser:
    """Describe the command line."""
    parser = LineParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmpretrain, mmdet or mmseg')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('image', type=Path, help='image file')
    parser.add_argument('--out', type=Path, required=True, help='folder of the results, made new')
    parser.add_argument(
        '--overwrite', action='store_true', help='write to --out even if there is something in it'
    )
    text = 'pixels of the image whose attention is drawn, by default a grid of 2 x 2'
    parser.add_argument('--points', nargs='+', type=parse_point, metavar='X,Y', help=text)
    text = 'stages to look at, from 1 to 4, by default all'
    parser.add_argument('--stages', nargs='+', type=int, choices=STAGES, metavar='M', help=text)
    text = 'a second model for the matrices and curves, as one with less_attention=False'
    parser.add_argument('--compare', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help=text)
    parser.add_argument('--device', help='as cpu or cuda:1, by default a GPU if there is one')
    parser.add_cfg_options('override keys of CONFIG, as tools/test.py does; not of the second one')
    parser.add_trust_checkpoint()
    return parser


def parse_point(text: str) -> tuple[int, int]:
    """Read a pixel, as ``'48,52'``."""
    x, _, y = text.partition(',')
    if not (x.isdecimal() and y.isdecimal()):
        raise ArgumentTypeError(f'{text!r} is no pixel, expected X,Y as 48,52')
    return int(x), int(y)


def visualize(args: Namespace) -> None:
    """Draw and measure as the arguments say.

    Raises:
        UserError: If the arguments do not fit, files are missing, a checkpoint does not belong to
            its model, or a model has no LaViT.
    """
    check_out(args.out, args.overwrite)
    args.device = check_device(args.device or get_device())
    first = look_at(args, args.config, args.checkpoint, args.cfg_options)
    points = choose_points(args.points, first.geometry)
    models = [first]
    if args.compare:
        models.append(look_at(args, *args.compare))
    # by the kind of model, else by config or checkpoint, whichever tells them apart
    choices = [*zip(*(model.names for model in models), strict=True), ('first', 'second')]
    labels = next(labels for labels in choices if len(set(labels)) == len(models))
    figures = draw_reports({k: model.report for k, model in zip(labels, models, strict=True)})
    numbers: dict[str, Any] = {'image': str(args.image), 'models': {}, 'points': []}
    for label, model in zip(labels, models, strict=True):
        numbers['models'][label] = model.files | {
            'layers': model.report.layers,
            'similarity_by_stage': model.report.similarity,
        }
    for x, y in points:
        layers = [attention_of_point(layer, (x, y), first.geometry) for layer in first.layers]
        for stage, group in groupby(layers, key=lambda a: a.layer.stage):
            figures[f'attention_x{x}_y{y}_stage{stage}.png'] = draw_attention(
                first.picture, (x, y), list(group), first.geometry.visible
            )
        place = ('stage', 'layer', 'kind')
        rows = [
            {key: getattr(a.layer, key) for key in place} | dict(window=a.box, attention=a.weights)
            for a in layers
        ]
        numbers['points'].append(dict(x=x, y=y, layers=rows))
    for name, figure in figures.items():
        content = BytesIO()
        figure.savefig(content, format='png', dpi=DPI, bbox_inches='tight', pad_inches=0.03)
        AtomicBackend().put(content.getvalue(), args.out / name)
        print(args.out / name)
    path = args.out / 'attention.json'
    AtomicBackend().put_text(mmengine.dump(numbers, file_format='json', indent=1), path)
    print(path)


def look_at(
    args: Namespace, config: str, checkpoint: str, overrides: dict[str, Any] | None = None
) -> Attention:
    """Load a model and measure its attention on the image.

    Raises:
        UserError: If a file cannot be read, the checkpoint does not belong to the model, or that
            has no LaViT or none of the stages.
    """
    cfg = read_config(config, overrides)
    model, metainfo = load_plain_model(cfg, checkpoint)
    backbone = find_backbone(model)
    predictor = Predictor(cfg, model, metainfo, args.device)
    try:
        loaded = predictor.load(args.image)
    except ValueError as error:
        raise UserError(f'{args.image}: {error}') from error
    data = predictor.model.data_preprocessor(pseudo_collate([loaded.data]), False)
    with torch.no_grad():
        _, trace = backbone.forward_trace(data['inputs'])
    layers = [layer for layer in trace if layer.stage in (args.stages or STAGES)]
    if not layers:
        raise UserError(f'--stages: the LaViT of {config} has {len(backbone.stages)} stages')
    # looked at or not
    less_attention = any(isinstance(module, LessAttention) for module in backbone.modules())
    return Attention(
        dict(config=config, checkpoint=checkpoint),
        ('LaViT' if less_attention else 'all-VA', Path(config).stem, Path(checkpoint).stem),
        loaded.picture,
        ImageGeometry.of_sample(data['data_samples'][0].metainfo),
        layers,
        measure_attention(backbone, layers),
    )


def choose_points(
    points: list[tuple[int, int]] | None, geometry: ImageGeometry
) -> list[tuple[int, int]]:
    """Pixels that were asked for, else the centers of the quarters of what the model sees.

    Raises:
        UserError: If one is outside the image or of what the test pipeline keeps.
    """
    left, top, right, bottom = geometry.visible
    if points is None:
        quarters = [(x, y) for y in (0.25, 0.75) for x in (0.25, 0.75)]
        return [
            (int(left + (right - left) * x), int(top + (bottom - top) * y)) for x, y in quarters
        ]
    for x, y in points:
        if not (left <= x + 0.5 < right and top <= y + 0.5 < bottom):
            raise UserError(
                f'--points {x},{y} is outside of what the model sees: '
                f'X from {left:.0f} to {right - 1:.0f}, Y from {top:.0f} to {bottom - 1:.0f}'
            )
    return list(dict.fromkeys(points))


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), visualize, argv)


if __name__ == '__main__':
    main()
