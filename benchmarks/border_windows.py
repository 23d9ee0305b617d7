"""Time windows that fit the map against whole, padded ones, on a CPU.

Where somebody hooks into a block, its stage computes whole windows: that is the slower side here.
It also predicts without tiles, so its forward pass shows what a hook costs, and the training step
what fitting saves. Examples::

    python benchmarks/border_windows.py --threads 2 --rounds 9
    python benchmarks/border_windows.py --arch tiny --sizes 500x375

Times are medians of the rounds, ± half of the range that holds their middle half; ratios are
medians of those of each round.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from common import (
    Row,
    Setting,
    Size,
    Spread,
    add_options,
    forward,
    interleave,
    print_machine,
    print_table,
    read_options,
    show_size,
    training_step,
    write_json,
)

from mmlavit.models import LaViT
from mmlavit.models.layers import Block

# maps of 512 pixels end within a window in all stages, those of 800x1344 in some
SIZES = ((512, 512), (800, 1344))


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, SIZES)
    args = parser.parse_args(argv)
    if args.device.type != 'cpu':
        parser.error(f'argument --device: {args.device}: only on a CPU do windows fit the map')
    return args, read_options(parser, args)


def time_windows(size: Size, batch: int, args: argparse.Namespace, setting: Setting) -> list[Row]:
    """Time a model and a copy that computes whole windows.

    Args:
        size: ``(h, w)`` of the images.
        batch: Images.
        args: Options.
        setting: How.

    Returns:
        Two rows: forward pass, training step.
    """
    models = {'fitted': LaViT(args.arch), 'whole': LaViT(args.arch)}
    for module in models['whole'].modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda module, inputs, output: None)
    images = torch.randn(batch, 3, *size)
    rows = []
    for mode, step in (('forward', forward), ('training', training_step)):
        for model in models.values():
            model.train(mode == 'training')
        calls = {name: partial(step, model, images, setting) for name, model in models.items()}
        seconds = interleave(calls, setting, f'{show_size(size)}, {mode}')
        found = {
            'fitted_milliseconds': 1000 * seconds['fitted'],
            'whole_milliseconds': 1000 * seconds['whole'],
            'fitted_over_whole': seconds['fitted'] / seconds['whole'],
        }
        row = dict(mode=mode, size=show_size(size), batch=batch)
        rows.append(row | {key: Spread.of(values)._asdict() for key, values in found.items()})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and keep what was asked for."""
    args, setting = parse_args(argv)
    print_machine(args)
    rows: list[Row] = []
    for size, batch in zip(args.sizes, args.batch, strict=True):
        rows += time_windows(size, batch, args, setting)
        write_json(args.json, args, rows)
    keys = ['fitted_milliseconds', 'whole_milliseconds', 'fitted_over_whole']
    lines = [
        [row['mode'], row['size'], str(row['batch']), *(Spread(**row[key]).show(2) for key in keys)]
        for row in rows
    ]
    columns = ['pass', 'image', 'batch', 'fitted, ms', 'whole, ms', 'fitted over whole']
    print_table('Windows at the border', columns, lines)


if __name__ == '__main__':
    main()
