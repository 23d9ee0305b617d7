"""Write Shapes, the built-in data for classification, detection and segmentation.

Nothing is downloaded, and the same settings give the same bytes. Example::

    python tools/make_shapes.py --out data/shapes --seed 0

The default of --out is where the configs of the quick start look: ``data/shapes`` of this checkout,
or of the working directory for a package that is installed without one.
The layouts, and how mmpretrain, mmdet and mmseg load them: ``mmlavit/datasets/shapes.py``.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmlavit.datasets.shapes import LAYOUTS, MANIFEST, ShapesSpec, manifest, write_shapes

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    default = ShapesSpec()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=(Path() if ROOT.name == '.mim' else ROOT) / 'data' / 'shapes',
        help='folder to write (%(default)s)',
    )
    parser.add_argument(
        '--seed', type=int, default=default.seed, help='seed of all images (%(default)s)'
    )
    parser.add_argument(
        '--num-classification',
        type=int,
        nargs=2,
        metavar=('TRAIN', 'VAL'),
        default=default.num_classification,
        help='number of classification images (%(default)s)',
    )
    parser.add_argument(
        '--num-scenes',
        type=int,
        nargs=2,
        metavar=('TRAIN', 'VAL'),
        default=default.num_scenes,
        help='number of scenes for detection and segmentation (%(default)s)',
    )
    parser.add_argument(
        '--classification-size',
        type=int,
        metavar='PIXELS',
        default=default.classification_size,
        help='side of the classification images (%(default)s)',
    )
    parser.add_argument(
        '--scene-size',
        type=int,
        metavar='PIXELS',
        default=default.scene_size,
        help='side of the scenes (%(default)s)',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace --out where it holds Shapes and nothing else',
    )
    return parser.parse_args()


def read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a Shapes folder, ``None`` for any other folder."""
    try:
        found = json.loads((out / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get('dataset') == 'shapes' else None


def is_in_place(out: Path, spec: ShapesSpec, overwrite: bool) -> bool:
    """Whether ``out`` holds the data set of ``spec`` and may stay.

    Raises:
        FileExistsError: If ``out`` holds something else that may not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not out.is_dir():
        raise FileExistsError(f'{out} is a file, expected a folder. Choose another --out.')
    found, wanted = read_manifest(out), json.loads(json.dumps(manifest(spec)))
    if found == wanted and not overwrite:
        return True
    names = sorted(path.name for path in out.iterdir())
    others = [name for name in names if name not in (MANIFEST, *LAYOUTS)]
    if found is None:
        problem = f'no Shapes but {", ".join(names[:5])} ({len(names)} entries)'
    elif others:
        problem = f'more than Shapes: {", ".join(others[:5])} ({len(others)} other entries)'
    elif overwrite:
        return False
    else:
        keys = [key for key in wanted if found.get(key) != wanted[key]]
        problem = (
            f'Shapes with {", ".join(f"{key} {found.get(key)}" for key in keys)}, '
            f'expected {", ".join(f"{key} {wanted[key]}" for key in keys)}'
        )
    raise FileExistsError(
        f'{out} holds {problem}. Nothing was written. Choose another --out, or --overwrite, '
        'which replaces a folder that holds Shapes and nothing else.'
    )


def make_shapes(out: Path, spec: ShapesSpec) -> None:
    """Write a complete data set to ``out``; when interrupted, leave ``out`` as it was."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f'.{out.name}-', dir=out.parent) as scratch:
        root = Path(scratch) / out.name
        write_shapes(root, spec)
        if out.exists():
            out.rename(Path(scratch) / 'replaced')
        root.rename(out)


def main() -> int:
    args = parse_args()
    # Behind a link, the folder to replace and its neighbour of the same disk are the target's.
    out = args.out.expanduser().resolve()
    try:
        spec = ShapesSpec(
            seed=args.seed,
            num_classification=tuple(args.num_classification),
            num_scenes=tuple(args.num_scenes),
            classification_size=args.classification_size,
            scene_size=args.scene_size,
        )
        if is_in_place(out, spec, args.overwrite):
            print(f'{out} already holds Shapes with these settings: left in place.')
            return 0
        make_shapes(out, spec)
    except (ValueError, OSError) as error:
        print(f'make_shapes: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'make_shapes: interrupted, {out} is as it was', file=sys.stderr)
        return 130

    print(f'Shapes with seed {spec.seed} written to {out}:')
    for layout, (train, val), side in (
        ('classification', spec.num_classification, spec.classification_size),
        ('coco, ade20k', spec.num_scenes, spec.scene_size),
    ):
        print(f'  {layout:14}  {train} train + {val} val images of {side} x {side} pixels')
    return 0


if __name__ == '__main__':
    sys.exit(main())
