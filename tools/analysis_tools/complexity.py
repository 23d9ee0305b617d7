"""Count parameters and multiply-adds of a model, part by part.

Matrix products and convolutions count, those inside fused attention included; norms, activations,
pooling and interpolation do not. One multiply-add is two FLOPs. Batch of one image, in evaluation.
"""

from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from mmengine.fileio import load
from mmengine.logging import MMLogger

from mmlavit.apis.complexity import Count, assumed_rois, count_complexity
from mmlavit.cli.configs import read_config
from mmlavit.cli.launch import run_tool
from mmlavit.cli.parsers import LineParser
from mmlavit.cli.plain_model import add_shape, build_plain_model, shape_of_image
from mmlavit.errors import UserError
from mmlavit.models import LaViT
from mmlavit.models.classifier import LaViTClassifier
from mmlavit.shipped import CONFIGS

Table = Mapping[str, Count]

# What a model is compared with, by whether it has less attention.
OTHERS = {True: 'all-VA baseline', False: 'LaViT'}


def build_parser() -> LineParser:
    """Describe the command line."""
    parser = LineParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmpretrain, mmdet or mmseg')
    add_shape(parser)
    text = 'put the all-VA baseline beside it (beside that one LaViT), and the published figures'
    parser.add_argument('--compare', action='store_true', help=text)
    parser.add_cfg_options()
    return parser


def complexity(args: Namespace) -> None:
    """Count as the arguments say.

    Raises:
        UserError: If the config cannot be read, or its model cannot be built or counted.
    """
    # what constructors say is no part of the table
    MMLogger.get_instance('complexity', log_level='WARNING')
    cfg = read_config(args.config, args.cfg_options)
    shape = shape_of_image(args, cfg)
    model = build_plain_model(cfg)
    backbone, rois = model.backbone, assumed_rois(model)
    if args.compare and not isinstance(backbone, LaViT):
        raise UserError(f'--compare: the backbone is a {type(backbone).__name__}, expected a LaViT')
    tables = {'': count_complexity(model, shape)}
    if args.compare:
        other = deepcopy(cfg)
        less_attention = cfg.model.backbone.get('less_attention', True)
        other.model.backbone.less_attention = not less_attention
        tables[OTHERS[less_attention]] = count_complexity(build_plain_model(other), shape)
    print(f'{args.config}, {shape[0]}x{shape[1]} px')
    print(render(tables))
    if rois:
        regions = f'{rois[0]} regions for the box heads'
        regions += f', {rois[1]} for the mask heads' if rois[1] else ''
        print(f'RoI heads: {regions}, the most that test_cfg lets through')
    if args.compare:
        print(compare_with_paper(cfg.model.backbone))


def render(tables: Mapping[str, Table]) -> str:
    """Lay out counts by title side by side, with a row for each part and one for the sum."""
    parts = dict.fromkeys(part for table in tables.values() for part in table)
    rows = [['part'], *([part] for part in parts), ['total']]
    for title, table in tables.items():
        suffix = f', {title}' if title else ''
        rows[0] += [f'parameters{suffix}', f'multiply-adds{suffix}']
        for row in rows[1:]:
            row += cells(total(table) if row is rows[-1] else table.get(row[0], Count(0, 0)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    rule = '-' * len(lines[0])
    return '\n'.join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def cells(count: Count) -> list[str]:
    """Parameters, and billions of multiply-adds."""
    return [f'{count.parameters:,}', f'{count.macs / 1e9:.3f} G']


def total(table: Table) -> Count:
    """Sum over the parts."""
    return Count(*map(sum, zip(*table.values(), strict=True)))


def compare_with_paper(backbone: dict[str, Any]) -> str:
    """Put a backbone, as the classifier that the paper counts, beside the published figures."""
    arch = backbone.get('arch', 'small')
    models = load(CONFIGS / 'classification/metafile.yml')['Models']
    metadata = {model['Name']: model['Metadata'] for model in models}
    published = metadata.get(f'lavit-{arch}_8xb128_in1k', {})
    if 'FLOPs (paper)' not in published:
        return f'the paper has no figures for arch={arch!r}'
    known = ('arch', 'window_size', 'attention_residual', 'in_channels')
    options = {key: backbone[key] for key in known if key in backbone}
    less_attention = backbone.get('less_attention', True)
    here, other = (
        total(count_complexity(LaViTClassifier(less_attention=less, **options), (224, 224)))
        for less in (less_attention, not less_attention)
    )
    paper = Count(published['Parameters (paper)'], published['FLOPs (paper)'])
    lines = [f'{arch} as a classifier of 1000 classes at 224x224 px:']
    for title, count in {
        'here': here,
        f'here, {OTHERS[less_attention]}': other,
        'paper' if less_attention else 'paper, LaViT': paper,
    }.items():
        parameters, macs = cells(count)
        lines.append(f'  {title:<22}{parameters:>12} parameters{macs:>10} multiply-adds')
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), complexity, argv)


if __name__ == '__main__':
    main()
