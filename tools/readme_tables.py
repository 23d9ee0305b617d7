"""Compare two tables of README.md with the metafiles of the configs; ``--write`` renews them."""

import difflib
import re
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

from mmengine.fileio import load

ROOT = Path(__file__).resolve().parents[1]


def models(*folders: str) -> list[dict[str, Any]]:
    """What the metafiles of folders of configs list, with the paper's metrics by their names."""
    listed = [m for name in folders for m in load(ROOT / f'configs/{name}/metafile.yml')['Models']]
    for model in listed:
        lines = [result['Metrics'] for result in model.get('Results', [])]
        figures = [(name, value) for line in lines for name, value in line.items()]
        model['Paper'] = {name.removesuffix(' (paper)'): value for name, value in figures}
    return listed


def layout(head: str, rows: list[tuple[object, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ' | '.join(['---'] * len(rows[0])), *(' | '.join(map(str, r)) for r in rows)]
    return ''.join(f'| {line} |\n' for line in lines)


def classification() -> str:
    """Sizes and accuracy of the classifiers that the paper gives figures of."""
    rows: list[tuple[object, ...]] = []
    for model in models('classification'):
        if model['Paper']:
            meta = model['Metadata']
            rows.append(
                (
                    f'[{model["Name"]}]({model["Config"]})',
                    meta['Channels'],
                    f'{meta["Depths"]} ({meta["VA Layers"]})',
                    f'{meta["Parameters (paper)"] / 1e6:.1f} M',
                    f'{meta["Parameters"] / 1e6:.2f} M',
                    f'{meta["FLOPs (paper)"] / 1e9:.1f} G',
                    f'{meta["FLOPs"] / 1e9:.2f} G',
                    model['Paper']['Top 1 Accuracy'],
                )
            )
    head = (
        'config | channels | depths (VA) | parameters, paper | parameters, here | '
        'multiply-adds, paper | multiply-adds, here | top-1, paper'
    )
    return layout(head, rows)


def dense() -> str:
    """One row a config of detection and segmentation that the paper gives figures of."""
    rows: list[tuple[object, ...]] = []
    for model in filter(itemgetter('Paper'), models('detection', 'segmentation')):
        meta = model['Metadata']
        iterations = f'{meta.get("Iterations", 0) // 1000}k iterations'
        length = f'{meta["Epochs"]} epochs' if 'Epochs' in meta else iterations
        figures = [f'{value} {name}' for name, value in model['Paper'].items()]
        rows.append(
            (
                f'[{", ".join(meta["Architecture"])}]({model["Config"]})',
                f'{meta["Parameters"] / 1e6:.2f} M',
                meta['Training Data'],
                ', '.join([length, *meta.get('Training Techniques', [])]),
                ', '.join(figures),
            )
        )
    return layout('config | parameters | data | training | result, paper', rows)


def renew(text: str) -> str:
    """Write each table between its two marks in a page."""
    for table in (classification, dense):
        begin, end = f'<!-- table: {table.__name__} -->\n', '<!-- end of table -->'
        marked = re.compile(f'(?<={begin}).*?(?={end})', re.DOTALL)
        text, count = marked.subn(table(), text)
        if count != 1:
            sys.exit(f'README.md: {count} tables between {begin.strip()} and {end}, expected one')
    return text


def main() -> None:
    """Compare, or write."""
    page = ROOT / 'README.md'
    text = page.read_text('utf-8')
    wanted = renew(text)
    if '--write' in sys.argv:
        page.write_text(wanted, 'utf-8')
    elif text != wanted:
        pages = (text.splitlines(), wanted.splitlines(), 'README.md', 'metafiles')
        print('\n'.join(difflib.unified_diff(*pages, lineterm='', n=0)))
        sys.exit('README.md differs from the metafiles; tools/readme_tables.py --write renews it')


if __name__ == '__main__':
    main()
