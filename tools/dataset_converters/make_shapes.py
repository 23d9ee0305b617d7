"""Write Shapes, the built-in data for classification, detection and segmentation.

Nothing is downloaded, and the same settings give the same bytes. Example::

    python tools/dataset_converters/make_shapes.py --out data/shapes --seed 0

The default of --out is where the configs of the quick start look: ``data/shapes`` of this checkout,
or of the working directory for a package that is installed without one.
The layouts, and how mmpretrain, mmdet and mmseg load them: ``mmlavit/datasets/shapes.py``.
"""

import json
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmlavit.cli.launch import run_tool
from mmlavit.cli.parsers import LineParser
from mmlavit.datasets.shapes import LAYOUTS, MANIFEST, ShapesSpec, manifest, write_shapes
from mmlavit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
HELP = {
    'seed': 'seed of all images',
    'num_classification': 'number of classification images',
    'num_scenes': 'number of scenes for detection and segmentation',
    'classification_size': 'side of the classification images in pixels',
    'scene_size': 'side of the scenes in pixels',
}


def build_parser() -> LineParser:
    """Describe the command line."""
    parser = LineParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        '--out',
        type=Path,
        default=(Path() if ROOT.name == '.mim' else ROOT) / 'data' / 'shapes',
        help='folder to write (%(default)s)',
    )
    for name, value in asdict(ShapesSpec()).items():
        splits: dict[str, Any] = {}
        if isinstance(value, tuple):
            splits = {'nargs': 2, 'metavar': ('TRAIN', 'VAL')}
        parser.add_argument(
            '--' + name.replace('_', '-'),
            type=int,
            default=value,
            help=f'{HELP[name]} (%(default)s)',
            **splits,
        )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace --out where it holds Shapes and nothing else',
    )
    return parser


def is_in_place(out: Path, spec: ShapesSpec, overwrite: bool) -> bool:
    """Whether ``out`` holds the data set of ``spec`` and may stay.

    Raises:
        UserError: If ``out`` holds something else that may not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f'{out} is a file, expected a folder. Choose another --out.')
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if not names:
        return False
    wanted = json.loads(json.dumps(manifest(spec)))
    try:
        found = json.loads((out / MANIFEST).read_text())
        is_shapes = found['dataset'] == 'shapes'
    except (OSError, ValueError, TypeError, KeyError):
        is_shapes = False
    others = [name for name in names if name not in (MANIFEST, *LAYOUTS)]
    if not is_shapes:
        problem = f'no Shapes but {", ".join(names[:5])} ({len(names)} entries)'
    elif found == wanted and not overwrite:
        return True
    elif others:
        problem = f'more than Shapes: {", ".join(others[:5])} ({len(others)} other entries)'
    elif overwrite:
        return False
    else:
        problem = 'Shapes with ' + '; '.join(
            f'{key} {found.get(key)}, expected {key} {value}'
            for key, value in wanted.items()
            if found.get(key) != value
        )
    raise UserError(
        f'{out} holds {problem}. Nothing was written. Choose another --out, or --overwrite, '
        'which replaces a folder that holds Shapes and nothing else.'
    )


def replace(out: Path, spec: ShapesSpec) -> None:
    """Write a complete data set to ``out``; when interrupted, leave it as it was."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f'.{out.name}-', dir=out.parent) as scratch:
        root = Path(scratch) / out.name
        write_shapes(root, spec)
        if out.exists():
            out.rename(Path(scratch) / 'replaced')
        root.rename(out)


def make_shapes(args: Namespace) -> None:
    """Write the data set, unless it is there.

    Raises:
        UserError: If a setting is out of range, or the folder may not or cannot be written.
    """
    # Behind a link, the folder to replace and its neighbour of the same disk are the target's.
    out = args.out.expanduser().resolve()
    values: dict[str, Any] = {name: getattr(args, name) for name in HELP}
    for name in ('num_classification', 'num_scenes'):
        values[name] = tuple(values[name])
    try:
        spec = ShapesSpec(**values)
        if is_in_place(out, spec, args.overwrite):
            print(f'{out} already holds Shapes with these settings: left in place.')
            return
        replace(out, spec)
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
