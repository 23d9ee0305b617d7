"""Hold the tables of README.md and docs/ to the metafiles of the configs, or write them anew.

A table lies between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.fileio import load

from mmlavit.cli.launch import run_tool
from mmlavit.cli.parsers import LineParser
from mmlavit.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAPER = ' (paper)'
SCRATCH = ' (from scratch)'
TOP_1 = 'Top 1 Accuracy'
SIZES = ['parameters, paper', 'parameters, here', 'multiply-adds, paper', 'multiply-adds, here']
END = '<!-- end of table -->'
MARKED = re.compile(rf'<!-- table: (\S+) -->\n(.*?)(?={END}|<!-- table: |\Z)', re.DOTALL)

Model = dict[str, Any]


def build_parser() -> LineParser:
    """Describe the command line."""
    parser = LineParser(description=__doc__)
    parser.add_argument('--write', action='store_true', help='write the tables, not only compare')
    parser.add_argument(
        'pages',
        nargs='*',
        type=Path,
        help='files to look at, by default README.md and all of docs/, with each table in one',
    )
    return parser


def read_models(folder: str) -> list[Model]:
    """Read the models of one folder of configs, in the order of its metafile."""
    return load(ROOT / 'configs' / folder / 'metafile.yml')['Models']


def metrics_of(model: Model) -> dict[str, float]:
    """All figures that a metafile has of a model's results, by the name of the metric."""
    lines = [result['Metrics'] for result in model.get('Results', [])]
    return {name: value for line in lines for name, value in line.items()}


def published(model: Model) -> dict[str, float]:
    """The paper's figures for a model, by the name of the metric."""
    figures = metrics_of(model)
    return {k.removesuffix(PAPER): v for k, v in figures.items() if k.endswith(PAPER)}


def result_cell(model: Model) -> str:
    """The same as a cell."""
    return join(f'{value} {name}' for name, value in published(model).items()) or 'not reported'


def join(values: Iterable[object]) -> str:
    """List values in a cell."""
    return ', '.join(map(str, values))


def markdown(*rows: list[str]) -> str:
    """Lay out a table whose first row is its head."""
    head, *body = rows
    return ''.join(f'| {" | ".join(row)} |\n' for row in (head, ['---'] * len(head), *body))


def sizes(model: Model) -> list[str]:
    """Parameters and multiply-adds of a classifier, the paper's and ours."""
    meta, cells = model['Metadata'], []
    for key, scale, unit in (('Parameters', 1e6, 'M'), ('FLOPs', 1e9, 'G')):
        cells += [f'{meta[key + PAPER] / scale:.1f} {unit}', f'{meta[key] / scale:.2f} {unit}']
    return cells


def classifiers() -> list[Model]:
    """One a size; the ablations, of which the paper gives no figure, are left out."""
    return [model for model in read_models('classification') if published(model)]


def classification_table() -> str:
    """Sizes and accuracy of the classifiers."""
    rows = []
    for model in classifiers():
        meta = model['Metadata']
        link = f'[{model["Name"]}]({model["Config"]})'
        depths = f'{meta["Depths"]} ({meta["VA Layers"]})'
        rows.append([link, meta['Channels'], depths, *sizes(model), str(published(model)[TOP_1])])
    return markdown(['config', 'channels', 'depths (VA)', *SIZES, 'top-1, paper'], *rows)


def sizes_table() -> str:
    """Sizes of the classifiers, by their arch."""
    rows = [[arch_of(model), *sizes(model)] for model in classifiers()]
    return markdown(['', *SIZES], *rows)


def arch_of(model: Model) -> str:
    """Name of the size, as ``small``."""
    return re.split('[-_]', model['Name'])[1]


def pretraining_table() -> str:
    """What the page on pre-training says of the classifiers."""
    rows = []
    for model in classifiers():
        _, parameters, _, macs = sizes(model)
        rows.append([f'`{model["Config"]}`', parameters, macs, str(published(model)[TOP_1])])
    return markdown(['config', 'parameters', 'multiply-adds', 'top-1, paper'], *rows)


def dense_table() -> str:
    """One row a config of detection and segmentation."""
    rows = []
    for model in read_models('detection') + read_models('segmentation'):
        meta = model['Metadata']
        iterations = f'{meta.get("Iterations", 0) // 1000}k iterations'
        length = f'{meta["Epochs"]} epochs' if 'Epochs' in meta else iterations
        rows.append(
            [
                f'[{join(meta["Architecture"])}]({model["Config"]})',
                f'{meta["Parameters"] / 1e6:.2f} M',
                meta['Training Data'],
                join([length, *meta.get('Training Techniques', [])]),
                result_cell(model),
            ]
        )
    return markdown(['config', 'parameters', 'data', 'training', 'result, paper'], *rows)


def detection_table() -> str:
    """One row a detector."""
    rows = [
        [model['Metadata']['Architecture'][0], f'`{model["Config"]}`', result_cell(model)]
        for model in read_models('detection')
    ]
    return markdown(['detector', 'config', 'result, paper'], *rows)


def segmentation_table() -> str:
    """One row a segmentor, with its learning rate, which the config has."""
    rows = []
    for model in read_models('segmentation'):
        meta = model['Metadata']
        lr = Config.fromfile(ROOT / model['Config']).optim_wrapper.optimizer.lr
        rate = np.format_float_scientific(lr, trim='-', exp_digits=1)
        if any('layer-wise' in technique for technique in meta.get('Training Techniques', [])):
            rate += ', layer-wise'
        rows.append([f'`{model["Config"]}`', str(meta['Batch Size']), rate, result_cell(model)])
    return markdown(['config', 'images a step', 'learning rate', 'result, paper'], *rows)


def shapes_table() -> str:
    """What was measured on Shapes, with the checkpoint of the classifier and without."""
    rows = []
    for model in read_models('shapes'):
        figures = metrics_of(model)
        if not figures:
            continue
        names = [name for name in figures if not name.endswith(SCRATCH)]
        with_checkpoint = join(figures[name] for name in names)
        if any(name.endswith(SCRATCH) for name in figures):
            columns = [with_checkpoint, join(figures[name + SCRATCH] for name in names)]
        else:  # the classifier itself
            columns = ['–', with_checkpoint]
        link = f'[{join(model["Metadata"]["Architecture"])}]({model["Config"]})'
        rows.append([link, join(names), *columns])
    head = ['model', 'metric on unseen images', 'from the classifier', 'from scratch']
    return markdown(head, *rows)


TABLES: dict[str, Callable[[], str]] = {
    'classification': classification_table,
    'dense': dense_table,
    'shapes': shapes_table,
    'sizes': sizes_table,
    'pretraining': pretraining_table,
    'detection': detection_table,
    'segmentation': segmentation_table,
}


def compare(args: Namespace) -> None:
    """Compare the tables, or write them.

    Raises:
        UserError: If a table differs and is not to be written, has no end or a name that is not
            known, or is on none of the pages, where these are all of them.
    """
    pages = args.pages or [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
    texts = {page: page.read_text('utf-8') for page in pages}
    found = [name for text in texts.values() for name in MARKED.findall(text)]
    missing = TABLES.keys() - {name for name, _ in found}
    if missing and not args.pages:
        raise UserError(f'no page has <!-- table: {min(missing)} -->')
    wanted = {page: rewrite(page, text) for page, text in texts.items()}
    changed = [page for page, text in texts.items() if wanted[page] != text]
    for page in changed:
        if not args.write:
            pairs = zip(texts[page].splitlines(), wanted[page].splitlines(), strict=False)
            line, expected = next(pair for pair in pairs if pair[0] != pair[1])
            raise UserError(
                f'{page}: found {line!r}, expected {expected!r}; '
                '`python tools/readme_tables.py --write` mends it'
            )
        page.write_text(wanted[page], 'utf-8')
        print(f'{page}: tables written')
    if not changed:
        print(f'{len(found)} tables: they are those of the metafiles')


def rewrite(page: Path, text: str) -> str:
    """Put the tables of the metafiles in the place of those of a page.

    Args:
        page: What messages call it.
        text: What it holds.

    Raises:
        UserError: If a table has no end or a name that is not known.
    """

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise UserError(f'{page}: table {name!r}: expected one of {", ".join(TABLES)}')
        if not text.startswith(END, match.end()):
            raise UserError(f'{page}: {END} behind <!-- table: {name} --> is not there')
        return f'<!-- table: {name} -->\n{TABLES[name]()}'

    return MARKED.sub(table, text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), compare, argv)


if __name__ == '__main__':
    main()
