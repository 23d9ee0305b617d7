"""Compare LaViT with backbones of the installed packages: time, arithmetic and memory.

All run in one process, one after the other in every round, so that they see the same machine; each
size has a process of its own. Examples::

    python benchmarks/speed.py --rounds 9 --growth --json speed.json --plot speed.png
    python benchmarks/speed.py --device cuda --dtype bf16 --batch 64 16 4 --compile
    python benchmarks/speed.py --models --no-backbones

Times are medians of the rounds, ± half of the range that holds their middle half; ratios are
medians of the ratios of each round. Memory is that of a training step above the loaded process.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from common import (
    Row,
    Setting,
    Size,
    Spread,
    add_options,
    forward,
    interleave,
    output_file,
    print_machine,
    print_table,
    progress_bar,
    read_options,
    show_size,
    size_of,
    training_step,
    write_json,
)
from counting import multiply_adds, training_memory
from detectors import time_detectors
from fresh_process import in_fresh_process
from plotting import plot
from subjects import (
    CHECKPOINTED,
    LAVIT,
    PEERS,
    REFERENCE,
    backbone_configs,
    build_backbone,
    images_of,
    missing_toolbox,
)
from torch import Tensor, nn

SIZES = ((224, 224), (512, 512), (800, 1344))
MODEL_SIZES = ((800, 1344), (512, 512))
MODES = ('forward', 'train')
# A backward pass has two products for each one of the forward pass; what is recomputed is no use.
PASSES = {'forward': 1, 'train': 3}
PRODUCT = 'matrix product'


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, SIZES)
    parser.add_argument(
        '--mode', choices=(*MODES, 'both'), default='both', help='what to time (%(default)s)'
    )
    parser.add_argument(
        '--peers',
        nargs='*',
        choices=PEERS,
        default=list(PEERS),
        help='backbones to compare with; swin, which the ratios refer to, is always there (all)',
    )
    parser.add_argument(
        '--compile',
        nargs='?',
        const='static',
        choices=('static', 'dynamic'),
        help='torch.compile every backbone: for each size anew, or for changing sizes',
    )
    parser.add_argument(
        '--growth',
        action='store_true',
        help='also time per pixel at twice the sides of the last size, over that at the size',
    )
    parser.add_argument(
        '--models', action='store_true', help='also predict with Mask R-CNN and UperNet'
    )
    parser.add_argument(
        '--model-sizes',
        nargs='+',
        type=size_of,
        default=MODEL_SIZES,
        metavar='HxW',
        help=f'image sizes of --models ({" ".join(map(show_size, MODEL_SIZES))})',
    )
    parser.add_argument('--no-backbones', action='store_true', help='leave out the main tables')
    parser.add_argument('--no-memory', action='store_true', help='do not measure memory')
    parser.add_argument('--plot', type=output_file, metavar='PNG', help='draw the main tables')
    args = parser.parse_args(argv)
    missing = missing_toolbox(args.peers, args.models)
    if missing:
        parser.error(f'{missing} is not installed; the peers are its backbones')
    if args.compile and args.models:
        parser.error('argument --models: Mask R-CNN and UperNet cannot be compiled as a whole')
    if args.compile and args.mode != 'forward' and not args.no_memory:
        parser.error('argument --compile: memory is not measured then, add --no-memory')
    if args.plot and args.no_backbones:
        parser.error('argument --plot: there is nothing to draw with --no-backbones')
    return args, read_options(parser, args)


def compiled(model: nn.Module, how: str | None) -> Callable[[Tensor], object]:
    """Compile a model if asked for."""
    return model if how is None else torch.compile(model, dynamic=how == 'dynamic')


def matrix_product(setting: Setting) -> tuple[Callable[[], object], float]:
    """Make the product that shows what the machine can do, and count its multiply-adds."""
    side = 8192 if setting.device.type == 'cuda' else 2048
    a, b, out = torch.randn(3, side, side, device=setting.device, dtype=setting.dtype)
    return partial(torch.mm, a, b, out=out), side**3


def time_backbones(size: Size, batch: int, args: argparse.Namespace, setting: Setting) -> list[Row]:
    """Measure all backbones at one size.

    Args:
        size: ``(h, w)`` of the images.
        batch: Images.
        args: Options.
        setting: How.

    Returns:
        One row a backbone.
    """
    configs = backbone_configs(args.arch, args.peers)
    rows: list[Row] = []
    models, compiled_models = {}, {}
    torch.compiler.reset()
    for name, config in configs.items():
        models[name] = build_backbone(config, setting.device)
        row: Row = dict(part='backbones', model=name, size=show_size(size), batch=batch)
        row['parameters'] = sum(p.numel() for p in models[name].parameters())
        row['multiply_adds'] = multiply_adds(config, size)
        rows.append(row)
        compiled_models[name] = compiled(models[name], args.compile)
    images = images_of(batch, size, setting.device)
    product, product_size = matrix_product(setting)
    for mode in MODES if args.mode == 'both' else (args.mode,):
        calls: dict[str, Callable[[], object]] = {PRODUCT: product}
        for name, model in models.items():
            model.train(mode == 'train')  # returns None in mmdet
            if mode == 'train':
                calls[name] = partial(step, compiled_models[name], model, images, setting)
            elif name != CHECKPOINTED:  # predicts as LaViT does
                calls[name] = partial(forward, compiled_models[name], images, setting)
        seconds = interleave(calls, setting, f'{show_size(size)} {mode}')
        for model in models.values():
            model.zero_grad()
        for row in rows:
            if row['model'] not in seconds:
                continue
            mine = seconds[row['model']]
            peak = product_size / seconds[PRODUCT]  # multiply-adds a second
            reached = PASSES[mode] * batch * row['multiply_adds'] / mine
            row[mode] = {
                'milliseconds': Spread.of(1000 * mine)._asdict(),
                'images_per_second': Spread.of(batch / mine)._asdict(),
                'speed_over_swin': Spread.of(seconds[REFERENCE] / mine)._asdict(),
                'share_of_peak': Spread.of(reached / peak)._asdict(),
                'peak_gflops': 2e-9 * float(np.median(peak)),
            }
    return rows


def step(
    run: Callable[[Tensor], object], model: nn.Module, images: Tensor, setting: Setting
) -> None:
    """Do a training step with new gradients."""
    model.zero_grad()
    training_step(run, images, setting)


def add_memory(
    rows: Sequence[Row], size: Size, batch: int, args: argparse.Namespace, setting: Setting
) -> None:
    """Measure the memory of a training step for all rows of one size."""
    configs = backbone_configs(args.arch, args.peers)
    with progress_bar() as progress:
        task = progress.add_task('memory', total=len(rows))
        for row in rows:
            progress.update(task, description=f'{show_size(size)} memory: {row["model"]}')
            row['memory'] = training_memory(configs[row['model']], size, batch, setting)
            progress.advance(task)
    reference = next(row['memory'] for row in rows if row['model'] == REFERENCE)
    for row in rows:
        row['memory_over_swin'] = row['memory'] / reference if reference else None


def print_backbones(rows: Sequence[Row]) -> None:
    """Print the rows of one size."""
    modes = [mode for mode in MODES if any(mode in row for row in rows)]
    columns = ['backbone', 'M params', 'G multiply-adds']
    for mode in modes:
        columns += [f'{mode}, ms', 'images/s over Swin-T', 'share of peak']
    with_memory = 'memory' in rows[0]
    columns += ['memory, MiB', 'over Swin-T'] if with_memory else []
    lines = []
    for row in rows:
        line = [row['model'], f'{row["parameters"] / 1e6:.2f}', f'{row["multiply_adds"] / 1e9:.2f}']
        for mode in modes:
            if mode not in row:
                line += ['', '', '']
                continue
            cell = {
                key: Spread(**value) for key, value in row[mode].items() if key != 'peak_gflops'
            }
            line.append(cell['milliseconds'].show(1))
            line += [cell[key].show(2) for key in ('speed_over_swin', 'share_of_peak')]
        if with_memory:
            known = row['memory'] is not None and row['memory_over_swin'] is not None
            line += (
                [f'{row["memory"] / 2**20:.0f}', f'{row["memory_over_swin"]:.2f}']
                if known
                else [
                    'unknown',
                    '',
                ]
            )
        lines.append(line)
    peaks = ', '.join(f'{rows[0][mode]["peak_gflops"]:.0f} ({mode})' for mode in modes)
    print_table(
        f'{rows[0]["size"]}, batch {rows[0]["batch"]}; matrix product at {peaks} GFLOPS',
        columns,
        lines,
    )


def time_growth(args: argparse.Namespace, setting: Setting) -> list[Row]:
    """Time a pixel at twice the sides of the last size, over that at the size itself."""
    small = args.sizes[-1]
    large = (2 * small[0], 2 * small[1])
    configs = backbone_configs(args.arch, [])
    calls: dict[str, Callable[[], object]] = {}
    torch.compiler.reset()
    for name in (LAVIT, REFERENCE):
        model = build_backbone(configs[name], setting.device)
        model.eval()
        for size in (small, large):
            images = images_of(1, size, setting.device)
            run = compiled(model, args.compile)
            calls[f'{name} {show_size(size)}'] = partial(forward, run, images, setting)
    seconds = interleave(calls, setting, 'growth')
    rows: list[Row] = []
    for name in (LAVIT, REFERENCE):
        first, second = (seconds[f'{name} {show_size(size)}'] for size in (small, large))
        rows.append(
            dict(part='growth', model=name, small=show_size(small), large=show_size(large),
                 milliseconds=[Spread.of(1000 * t)._asdict() for t in (first, second)],
                 growth=Spread.of(second / first / 4)._asdict())
        )  # fmt: skip
    return rows


def print_growth(rows: Sequence[Row]) -> None:
    """Print what :func:`time_growth` has found."""
    sizes = (f'{rows[0][key]}, ms' for key in ('small', 'large'))
    columns = ['backbone', *sizes, 'time per pixel, grown']
    lines = []
    for row in rows:
        times = [Spread(**time).show(1) for time in row['milliseconds']]
        lines.append([row['model'], *times, Spread(**row['growth']).show(2)])
    print_table('Forward pass of one image', columns, lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and keep what was asked for."""
    args, setting = parse_args(argv)
    print_machine(args)
    rows: list[Row] = []
    if not args.no_backbones:
        for size, batch in zip(args.sizes, args.batch, strict=True):
            found = in_fresh_process(setting, time_backbones, size, batch, args, setting)
            if args.mode != 'forward' and not args.no_memory:
                add_memory(found, size, batch, args, setting)
            print_backbones(found)
            rows += found
            write_json(args.json, args, rows)
        if args.plot:
            plot(rows, args.plot)
    if args.growth:
        found = in_fresh_process(setting, time_growth, args, setting)
        print_growth(found)
        rows += found
        write_json(args.json, args, rows)
    if args.models:
        rows += time_detectors(args.arch, args.model_sizes, setting)
        write_json(args.json, args, rows)


if __name__ == '__main__':
    main()
