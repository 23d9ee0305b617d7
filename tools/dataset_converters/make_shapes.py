"""Write Shapes, the built-in data for classification, detection and segmentation.

Nothing is downloaded, and the same settings give the same bytes. Example::

    python tools/dataset_converters/make_shapes.py --out data/shapes --seed 0

The default of --out is where the configs of the quick start look: ``data/shapes`` of this checkout,
or of the working directory for a package that is installed without one.
The layouts, and how mmpretrain, mmdet and mmseg load them: ``mmlavit/datasets/shapes.py``.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mmlavit.cli.converters import new_folder, output_parser
from mmlavit.cli.launch import run_tool
from mmlavit.cli.parsers import LineParser
from mmlavit.datasets.shapes import MANIFEST, ShapesSpec, manifest, write_shapes
from mmlavit.errors import UserError

COUNTED = {
    'classification': 'classification images',
    'scenes': 'scenes for detection and segmentation',
}


def build_parser() -> LineParser:
    """Describe the command line."""
    parser = output_parser(__doc__, 'shapes')
    parser.add_argument('--seed', type=int, default=0, help='seed of all images (%(default)s)')
    for name, text in COUNTED.items():
        parser.add_argument(
            f'--num-{name}',
            nargs=2,
            type=int,
            metavar=('TRAIN', 'VAL'),
            default=getattr(ShapesSpec, f'num_{name}'),
            help=f'number of {text} (%(default)s)',
        )
    return parser


def is_in_place(out: Path, spec: ShapesSpec) -> bool:
    """Whether ``out`` holds the data set of ``spec``.

    Raises:
        UserError: If ``out`` holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    wanted = json.loads(json.dumps(manifest(spec)))
    try:
        found = json.loads((out / MANIFEST).read_text('utf-8'))
        differing = [key for key in wanted if found.get(key) != wanted[key]]
    except (OSError, ValueError, AttributeError):
        problem = 'is there, and is no folder of Shapes'
    else:
        if not differing:
            return True
        pairs = [f'{key} {found.get(key)}, expected {key} {wanted[key]}' for key in differing]
        problem = f'holds Shapes with {"; ".join(pairs)}'
    raise UserError(f'{out} {problem}. Nothing was written: remove it, or choose another --out.')


def make_shapes(args: Namespace) -> None:
    """Write the data set, unless it is there; when interrupted, leave nothing.

    Raises:
        UserError: If a setting is out of range, or the folder may not or cannot be written.
    """
    out = args.out.expanduser().resolve()
    try:
        spec = ShapesSpec(args.seed, tuple(args.num_classification), tuple(args.num_scenes))
        if is_in_place(out, spec):
            print(f'{out} already holds Shapes with these settings: left in place.')
            return
        with new_folder(out) as folder:
            write_shapes(folder, spec)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    print(f'Shapes with seed {spec.seed} written to {out}:')
    for layout, (train, val), side in (
        ('classification', spec.num_classification, spec.classification_size),
        ('coco, ade20k', spec.num_scenes, spec.scene_size),
    ):
        print(f'  {layout:14}  {train} train + {val} val images of {side} x {side} pixels')


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), make_shapes, argv)


if __name__ == '__main__':
    main()
