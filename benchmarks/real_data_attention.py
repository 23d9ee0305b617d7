"""Measure the attention of LaViT-nano and its ablations on CIFAR-10, on 50 test images.

Takes folders that benchmarks/real_data.py has made. Example::

    python benchmarks/real_data_attention.py work_dirs/real_data/cifar10_scratch/lavit_*
"""

import argparse
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean

import torch
from common import Row, output_file, print_table, read_options, write_json
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from real_data_models import ALL, NANO

from mmlavit.visualization.attention_measures import measure_attention


def finished_run(text: str) -> Path:
    """Parse the folder of a run, before anything is measured."""
    result = Path(text) / 'result.json'
    if not result.is_file():
        raise argparse.ArgumentTypeError(
            f'{text!r}: expected the folder of a run that benchmarks/real_data.py has finished'
        )
    run = json.loads(result.read_text())
    if run['task'] != 'cifar10' or ALL[run['model']].backbone['type'] != NANO['type']:
        raise argparse.ArgumentTypeError(
            f'{text!r}: expected LaViT on cifar10, found {run["model"]} on {run["task"]}'
        )
    return Path(text)


def measure(folder: Path) -> Row:
    """Measure the trained model of a run, on its test images."""
    run = json.loads((folder / 'result.json').read_text())
    cfg = Config.fromfile(folder / 'run.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        images = DATASETS.build(cfg.test_dataloader.dataset)
        model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, run['checkpoint'], map_location='cpu', strict=True)
    # they are sorted by class: five of each
    batch = pseudo_collate([images[i] for i in range(0, len(images), 200)])
    with torch.no_grad():
        _, layers = model.backbone.forward_trace(model.data_preprocessor(batch)['inputs'])
    return run | dict(layers=measure_attention(model.backbone, layers).layers)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'runs', nargs='+', type=finished_run, metavar='FOLDER', help='LaViT on CIFAR-10'
    )
    parser.add_argument('--json', type=output_file, metavar='FILE', help='write all figures there')
    args = read_options(parser, argv)
    found = sorted(map(measure, args.runs), key=lambda row: row['model'])
    lines = []
    for model, group in groupby(found, key=lambda row: row['model']):
        rows = list(group)
        line = [model, str(len(rows)), f'{mean(row["test"] for row in rows):.2f}']
        for i, layer in enumerate(rows[0]['layers']):
            line.append(f'{mean(row["layers"][i]["entropy"] for row in rows):.2f} {layer["kind"]}')
        for stage in (2, 3):
            same = [
                layer['similarity_to_previous']
                for row in rows
                for layer in row['layers']
                if layer['stage'] == stage and layer['layer'] > 1
            ]
            line.append(f'{mean(same):.2f}')
        lines.append(line)
    places = [f'entropy {layer["stage"]}.{layer["layer"]}' for layer in found[0]['layers']]
    columns = ['backbone', 'seeds', 'top-1', *places, 'similarity 2', 'similarity 3']
    print_table('Attention on CIFAR-10, by stage and layer', columns, lines, args)
    write_json(args, found)


if __name__ == '__main__':
    main()
