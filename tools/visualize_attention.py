"""Draw the attention of a model of mmpretrain, mmdet or mmseg, and measure it.

--out holds

  attention_xX_yY_stageM.png  what pixel (X, Y) attends to, in each layer and head of a stage
  similarity.png              similarity of the attention of all pairs of layers, a matrix a stage
  saturation.png              the same from each layer to the next, as a curve
  diagonality.png             the two terms of the diagonality-preserving loss, layer by layer
  transforms.png              distance of each Theta and Psi from the identity
  transforms_stageM.png       what they add to the identity; of a second model, ..._second.png
  attention.json              the numbers

Attention lives in windows: a frame shows the one that the pixel is in. docs/attention.md says how
each number is defined.
"""

import json
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.device import get_device
from torch import Tensor

from mmlavit.apis.predictors import build_predictor
from mmlavit.atomic_backend import AtomicBackend
from mmlavit.checkpoints import read_checkpoint
from mmlavit.checks.build import config_errors
from mmlavit.checks.image_files import read_image
from mmlavit.cli.arguments import check_device, check_out
from mmlavit.cli.configs import read_config
from mmlavit.cli.launch import run_tool
from mmlavit.cli.parsers import LineParser
from mmlavit.errors import UserError
from mmlavit.models import LayerTrace, LessAttention
from mmlavit.visualization.attention_figures import draw_reports
from mmlavit.visualization.attention_maps import find_backbone
from mmlavit.visualization.attention_point_figure import draw_attention
from mmlavit.visualization.attention_report import AttentionReport, measure_attention, shorten
from mmlavit.visualization.attention_windows import ImageGeometry, attention_of_point

DPI = 200
STAGES = (1, 2, 3, 4)

Point = tuple[int, int]


class Model(NamedTuple):
    """A model and its attention on the image."""

    config: str
    checkpoint: str
    layers: list[LayerTrace]
    geometry: ImageGeometry
    report: AttentionReport
    less_attention: bool  # in any layer, looked at or not


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
    parser.add_argument(
        '--points',
        nargs='+',
        type=parse_point,
        metavar='X,Y',
        help='pixels of the image whose attention is drawn, by default a grid of 2 x 2',
    )
    parser.add_argument(
        '--stages',
        nargs='+',
        type=int,
        choices=STAGES,
        metavar='M',
        help='stages to look at, from 1 to 4, by default all',
    )
    parser.add_argument(
        '--compare',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a second model for the matrices and curves, as one with less_attention=False',
    )
    parser.add_argument('--device', help='as cpu or cuda:1, by default a GPU if there is one')
    parser.add_cfg_options('override keys of CONFIG, as tools/test.py does; not of the second one')
    parser.add_trust_checkpoint()
    return parser


def parse_point(text: str) -> tuple[int, int]:
    """Read a pixel.

    Args:
        text: As ``'48,52'``.

    Raises:
        ArgumentTypeError: If it is none.
    """
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
    device = check_device(args.device or get_device())
    try:
        image = read_image(args.image)
    except ValueError as error:
        raise UserError(f'{args.image}: {error}') from error
    stages = args.stages or STAGES
    model = look_at(args.config, args.checkpoint, args.cfg_options, args.image, stages, device)
    points = args.points or default_points(model.geometry)
    for point in points:
        check_point(point, model.geometry)
    models = [model]
    if args.compare:
        config, checkpoint = args.compare
        models.append(look_at(config, checkpoint, None, args.image, stages, device))

    labels = labels_of(models)
    figures = draw_reports({k: other.report for k, other in zip(labels, models, strict=True)})
    numbers: dict[str, Any] = {'image': str(args.image), 'models': {}, 'points': []}
    for label, other in zip(labels, models, strict=True):
        origin = {'config': other.config, 'checkpoint': other.checkpoint}
        numbers['models'][label] = origin | other.report.to_json()
    for point in dict.fromkeys(points):
        drawn, layers = draw_point(model, point, image)
        figures |= drawn
        numbers['points'].append({'x': point[0], 'y': point[1], 'layers': layers})
    for name, figure in figures.items():
        content = BytesIO()
        figure.savefig(content, format='png', dpi=DPI, bbox_inches='tight', pad_inches=0.03)
        AtomicBackend().put(content.getvalue(), args.out / name)
        print(args.out / name)
    path = args.out / 'attention.json'
    AtomicBackend().put_text(json.dumps(numbers, indent=1), path)
    print(path)


def look_at(
    config: str,
    checkpoint: str,
    overrides: dict[str, Any] | None,
    image: Path,
    stages: Sequence[int],
    device: str,
) -> Model:
    """Load a model and measure its attention on the image.

    Args:
        config: Its config file.
        checkpoint: Its checkpoint.
        overrides: What ``--cfg-options`` gave.
        image: The image file.
        stages: Numbers of the stages to look at.
        device: Name of the device.

    Raises:
        UserError: If a file cannot be read, the config is refused, the checkpoint does not belong
            to the model, or that has no LaViT or none of the stages.
    """
    cfg = read_config(config, overrides)
    content = read_checkpoint(checkpoint)
    with config_errors(cfg):
        inferencer = build_predictor(cfg, checkpoint, content, device, image.parent).inferencer
    backbone = find_backbone(inferencer.model)
    inputs, meta = model_input(inferencer, image)
    with torch.no_grad():
        _, trace = backbone.forward_trace(inputs)
    layers = [layer for layer in trace if layer.stage in stages]
    if not layers:
        raise UserError(f'--stages: the LaViT of {config} has {len(backbone.stages)} stages')
    geometry = ImageGeometry.of_sample(meta)
    report = measure_attention(backbone, layers)
    less = any(isinstance(module, LessAttention) for module in backbone.modules())
    return Model(config, checkpoint, layers, geometry, report, less)


def model_input(inferencer: Any, path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Take an image through the test pipeline, up to what the backbone gets.

    Args:
        inferencer: Of a toolbox.
        path: The image.

    Returns:
        Batch of shape (1, C, h, w), and the sample's metainfo.
    """
    data = next(iter(inferencer.preprocess([str(path)], batch_size=1)))
    if not isinstance(data, dict):
        _, data = data  # mmdet's comes with the images
    data = inferencer.model.data_preprocessor(data, False)
    return data['inputs'], data['data_samples'][0].metainfo


def default_points(geometry: ImageGeometry) -> list[Point]:
    """Centers of the quarters of what the model sees.

    Args:
        geometry: Of the image.
    """
    left, top, right, bottom = geometry.visible
    return [
        (int(left + (right - left) * x), int(top + (bottom - top) * y))
        for y in (0.25, 0.75)
        for x in (0.25, 0.75)
    ]


def check_point(point: Point, geometry: ImageGeometry) -> None:
    """Stop where the model does not see a pixel.

    Args:
        point: The pixel.
        geometry: Of the image.

    Raises:
        UserError: If it is outside the image or of what the test pipeline keeps.
    """
    left, top, right, bottom = geometry.visible
    x, y = point
    if not (left <= x + 0.5 < right and top <= y + 0.5 < bottom):
        raise UserError(
            f'--points {x},{y} is outside of what the model sees: '
            f'X from {left:.0f} to {right - 1:.0f}, Y from {top:.0f} to {bottom - 1:.0f}'
        )


def labels_of(models: Sequence[Model]) -> list[str]:
    """Name the models in the figures, each by another name.

    Args:
        models: One or two.
    """
    choices = (
        ['LaViT' if model.less_attention else 'all-VA' for model in models],
        [Path(model.config).stem for model in models],
        [Path(model.checkpoint).stem for model in models],
        [f'model {i}' for i, _ in enumerate(models, start=1)],
    )
    return next(labels for labels in choices if len(set(labels)) == len(models))


def draw_point(
    model: Model, point: Point, image: np.ndarray
) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """Draw the attention of a pixel.

    Args:
        model: The model.
        point: The pixel.
        image: RGB, shape (height, width, 3).

    Returns:
        Figures by file name, and the numbers, layer by layer.
    """
    attentions = [attention_of_point(layer, point, model.geometry) for layer in model.layers]
    figures = {}
    for stage in sorted({layer.stage for layer in model.layers}):
        of_stage = [a for a in attentions if a.layer.stage == stage]
        name = f'attention_x{point[0]}_y{point[1]}_stage{stage}.png'
        figures[name] = draw_attention(image, point, of_stage, model.geometry.visible)
    numbers = [
        {
            'stage': a.layer.stage,
            'layer': a.layer.layer,
            'kind': a.layer.kind,
            'window': shorten(a.box),
            'attention': shorten(a.weights),
        }
        for a in attentions
    ]
    return figures, numbers


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), visualize, argv)


if __name__ == '__main__':
    main()
