"""Compare LaViT with backbones of the installed packages: time, arithmetic and memory.

All run in one process, one after the other in every round, so that they see the same machine; each
size has a process of its own. Examples::

    python benchmarks/speed.py --rounds 9 --json speed.json
    python benchmarks/speed.py --device cuda --dtype bf16 --batch 64 16 4 --compile

LaViT trains with the diagonality-preserving (DP) loss, as classifiers do, and once without.
Times are medians of the rounds, ± half of the range that holds their middle half; ratios are
medians of the ratios of each round. Memory is that of a training step above the loaded process.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from common import (
    Row,
    Size,
    add_timing,
    make_parser,
    print_table,
    read_options,
    read_setting,
    show_size,
    write_json,
)
from fresh_process import in_fresh_process
from memory import training_memory
from recipe import TrainingLoss, forward, training_step
from subjects import (
    GPU_PEERS,
    PEERS,
    REFERENCE,
    build_backbone,
    default_peers,
    images_of,
    missing_package,
    subjects_of,
)
from timing import Setting, Spread, best, progress_bar, time_ways
from torch import nn

from mmlavit.apis.complexity import multiply_adds

MODES = ('forward', 'training')


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Parse the command line."""
    parser = make_parser(__doc__, 'fp32')
    add_timing(parser)
    parser.add_argument(
        '--mode', choices=(*MODES, 'both'), default='both', help='what to time (%(default)s)'
    )
    parser.add_argument(
        '--peers',
        nargs='*',
        choices=(*PEERS, *GPU_PEERS),
        help='backbones to compare with; swin, which the ratios refer to, is always there (all; '
        "timm's on a GPU only)",
    )
    parser.add_argument('--no-memory', action='store_true', help='do not measure memory')
    args = read_options(parser, argv)
    if args.peers is None:
        args.peers = default_peers(args.device)
    missing = missing_package(args.peers)
    if missing:
        parser.error(f'{missing} is not installed; the peers are its backbones')
    return args, read_setting(parser, args)


def time_backbones(size: Size, batch: int, args: argparse.Namespace, setting: Setting) -> list[Row]:
    """Measure all backbones at one size, and return one row each."""
    subjects = subjects_of(args.arch, args.peers)
    models = {
        name: build_backbone(subject.config, setting.device) for name, subject in subjects.items()
    }
    images = images_of(batch, size, setting.device)
    rows: dict[str, Row] = {}
    for name, model in models.items():
        rows[name] = dict(model=name, size=show_size(size), batch=batch)
        rows[name]['parameters'] = sum(p.numel() for p in model.parameters())
    for mode in MODES if args.mode == 'both' else (args.mode,):
        calls: dict[str, tuple[nn.Module, Callable[[Any], object]]] = {}
        for name, subject in subjects.items():
            model = models[name]
            if mode == 'training':
                loss = TrainingLoss(model, subject.diagonality).train()
                calls[name] = loss, partial(training_step, images=images, setting=setting)
            elif subject.predicts:
                model.eval()  # returns None in mmdet
                calls[name] = model, partial(forward, images=images, setting=setting)
        found = time_ways(calls, setting, f'{show_size(size)} {mode}')
        reference = best(found[REFERENCE])
        for name, ways in found.items():
            mine = best(ways)
            rows[name][mode] = {
                'milliseconds': {way: Spread.of(1000 * t)._asdict() for way, t in ways.items()},
                'images_per_second': Spread.of(batch / mine)._asdict(),
                'speed_over_swin': Spread.of(reference / mine)._asdict(),
            }
    for name, model in models.items():  # at the end: a model that was counted is of no use
        rows[name]['multiply_adds'] = multiply_adds(model, size)['']
    return list(rows.values())


def add_memory(
    rows: Sequence[Row], size: Size, batch: int, args: argparse.Namespace, setting: Setting
) -> None:
    """Measure the memory of a training step, not compiled, for all rows of one size."""
    subjects = subjects_of(args.arch, args.peers)
    with progress_bar() as progress:
        task = progress.add_task('memory', total=len(rows))
        for row in rows:
            progress.update(task, description=f'{show_size(size)} memory: {row["model"]}')
            row['memory'] = training_memory(subjects[row['model']], size, batch, setting)
            progress.advance(task)
    reference = next(row['memory'] for row in rows if row['model'] == REFERENCE)
    for row in rows:
        row['memory_over_swin'] = row['memory'] / reference if reference else None


def print_backbones(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Print the rows of one size."""
    modes = [mode for mode in MODES if any(mode in row for row in rows)]
    ways = ('eager', 'compiled') if args.compile else ('eager',)
    columns = ['backbone', 'M params', 'G multiply-adds']
    for mode in modes:
        columns += [f'{mode}{", compiled" if way == "compiled" else ""}, ms' for way in ways]
        columns.append('images/s over Swin-T')
    columns += ['memory, MiB', 'over Swin-T'] if 'memory' in rows[0] else []
    lines = []
    for row in rows:
        line = [row['model'], f'{row["parameters"] / 1e6:.2f}', f'{row["multiply_adds"] / 1e9:.2f}']
        for mode in modes:
            found = row.get(mode, {})
            times = found.get('milliseconds', {})
            line += [Spread(**times[way]).show(1) if way in times else '' for way in ways]
            line.append(Spread(**found['speed_over_swin']).show(2) if found else '')
        if 'memory' in row:
            known = row['memory_over_swin'] is not None
            line.append(f'{row["memory"] / 2**20:.0f}' if known else 'unknown')
            line.append(f'{row["memory_over_swin"]:.2f}' if known else '')
        lines.append(line)
    print_table(f'{rows[0]["size"]}, batch {rows[0]["batch"]}', columns, lines, args)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and keep what was asked for."""
    args, setting = parse_args(argv)
    rows: list[Row] = []
    for size, batch in zip(args.sizes, args.batch, strict=True):
        found = in_fresh_process(setting, time_backbones, size, batch, args, setting)
        if args.mode != 'forward' and not args.no_memory:
            add_memory(found, size, batch, args, setting)
        print_backbones(found, args)
        rows += found
        write_json(args, rows)


if __name__ == '__main__':
    main()
