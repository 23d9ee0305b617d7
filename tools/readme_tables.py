"""Hold the tables of README.md to the metafiles of the configs, or write them anew."""

from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmengine.fileio import load

from mmlavit.cli.launch import LineParser, run_tool
from mmlavit.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAPER = ' (paper)'

Model = dict[str, Any]


def build_parser() -> LineParser:
    """Describe the command line."""
    parser = LineParser(description=__doc__)
    parser.add_argument('--write', action='store_true', help='write the tables, not only compare')
    parser.add_argument(
        '--readme', type=Path, default=ROOT / 'README.md', help='file to look at (%(default)s)'
    )
    return parser


def read_models(folder: str) -> list[Model]:
    """Read the models of one folder of configs, in the order of its metafile."""
    return load(ROOT / 'configs' / folder / 'metafile.yml')['Models']


def published(model: Model) -> dict[str, float]:
    """The paper's figures for a model, by the name of the metric."""
    metrics = [result['Metrics'] for result in model.get('Results', [])]
    return {name.removesuffix(PAPER): value for line in metrics for name, value in line.items()}


def join(values: Iterable[object]) -> str:
    """List values in a cell."""
    return ', '.join(map(str, values))


def markdown(*rows: list[str]) -> str:
    """Lay out a table whose first row is its head."""
    head, *body = rows
    return ''.join(f'| {" | ".join(row)} |\n' for row in (head, ['---'] * len(head), *body))


def classification_table() -> str:
    """One row a size; the ablations, of which the paper gives no figure, are left out."""
    head = ['config', 'channels', 'depths (VA)', 'parameters, paper', 'parameters, here']
    head += ['multiply-adds, paper', 'multiply-adds, here', 'top-1, paper']
    rows = []
    for model in read_models('classification'):
        if not published(model):
            continue
        meta = model['Metadata']
        row = [f'[{model["Name"]}]({model["Config"]})', join(meta['Channels'])]
        row.append(f'{join(meta["Depths"])} ({join(meta["VA Layers"])})')
        for key, unit in (('Parameters', 'M'), ('FLOPs', 'G')):
            scale = {'M': 1e6, 'G': 1e9}[unit]
            row.append(f'{meta[key + PAPER] / scale:.1f} {unit}')
            row.append(f'{meta[key] / scale:.2f} {unit}')
        rows.append([*row, str(published(model)['Top 1 Accuracy'])])
    return markdown(head, *rows)


def dense_table() -> str:
    """One row a config of detection and segmentation."""
    rows = []
    for model in read_models('detection') + read_models('segmentation'):
        meta = model['Metadata']
        iterations = f'{meta.get("Iterations", 0) // 1000}k iterations'
        length = f'{meta["Epochs"]} epochs' if 'Epochs' in meta else iterations
        result = join(f'{value} {name}' for name, value in published(model).items())
        rows.append(
            [
                f'[{join(meta["Architecture"])}]({model["Config"]})',
                f'{meta["Parameters"] / 1e6:.2f} M',
                meta['Training Data'],
                join([length, *meta.get('Training Techniques', [])]),
                result or 'not reported',
            ]
        )
    return markdown(['config', 'parameters', 'data', 'training', 'result, paper'], *rows)


def compare(args: Namespace) -> None:
    """Compare the tables, or write them.

    Raises:
        UserError: If a table differs and is not to be written, or its markers are not there.
    """
    text = args.readme.read_text('utf-8')
    wanted = text
    for name, table in (('classification', classification_table()), ('dense', dense_table())):
        start, end = f'<!-- table: {name} -->\n', '<!-- end of table -->'
        before, found_start, rest = wanted.partition(start)
        _, found_end, after = rest.partition(end)
        if not found_start or not found_end:
            raise UserError(f'{args.readme}: {start.strip()} with {end} behind it is not there')
        wanted = before + start + table + end + after
    if wanted == text:
        print(f'{args.readme}: the tables are those of the metafiles')
    elif args.write:
        args.readme.write_text(wanted, 'utf-8')
        print(f'{args.readme}: tables written')
    else:
        pairs = zip(text.splitlines(), wanted.splitlines(), strict=False)
        found, expected = next(pair for pair in pairs if pair[0] != pair[1])
        raise UserError(
            f'{args.readme}: found {found!r}, expected {expected!r}; '
            '`python tools/readme_tables.py --write` mends it'
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), compare, argv)


if __name__ == '__main__':
    main()
