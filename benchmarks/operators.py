"""Show where the time of a LaViT goes, by kind of operator, as torch's profiler sees it.

Examples::

    python benchmarks/operators.py --threads 1 --sizes 224x224 --batch 8
    python benchmarks/operators.py --device cuda --dtype bf16 --batch 64 16 4

Shares are of the time spent in operators, without what is called from within them. A training step
has the diagonality-preserving loss.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from common import (
    Row,
    Size,
    add_options,
    print_table,
    read_options,
    read_setting,
    show_size,
    write_json,
)
from recipe import TrainingLoss, forward, training_step
from timing import Setting
from torch.profiler import ProfilerActivity, profile

from mmlavit.models import LaViT

SIZES = ((224, 224), (512, 512))
# Kinds, by what the names of their operators hold; the first that fits counts.
KINDS = {
    'products within windows': ('bmm', 'baddbmm', 'scaled_dot_product'),
    'linear layers': ('addmm', 'aten::mm'),
    'convolutions': ('conv', 'mkldnn'),
    'softmax': ('softmax',),
    'GELU': ('gelu',),
    'LayerNorm': ('layer_norm',),
    'copies': ('copy_', 'aten::cat', 'fill_', 'zero_', 'constant_pad'),
    'sums': ('aten::add', 'aten::sum', 'scatter_add'),
}


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, SIZES)
    args = read_options(parser, argv)
    return args, read_setting(parser, args)


def profile_model(size: Size, batch: int, args: argparse.Namespace, setting: Setting) -> list[Row]:
    """Profile forward pass and training step of one size.

    Args:
        size: ``(h, w)`` of the images.
        batch: Images.
        args: Options.
        setting: How.

    Returns:
        Two rows of shares by kind.
    """
    model = LaViT(args.arch).to(setting.device)
    images = torch.randn(batch, 3, *size, device=setting.device)
    activities = [ProfilerActivity.CPU]
    if setting.device.type == 'cuda':
        activities.append(ProfilerActivity.CUDA)
    rows = []
    for mode in ('forward', 'training'):
        call = partial(forward, model.eval(), images, setting)
        if mode == 'training':
            call = partial(training_step, TrainingLoss(model, True).train(), images, setting)
        call()
        with profile(activities=activities) as found:
            for _ in range(setting.rounds):
                call()
        times = dict.fromkeys([*KINDS, 'other'], 0.0)
        for event in found.key_averages():
            times[kind_of(event.key)] += (
                event.self_device_time_total
                if setting.device.type == 'cuda'
                else event.self_cpu_time_total
            )
        total = sum(times.values())
        shares = {kind: time / total for kind, time in times.items()}
        rows.append(dict(mode=mode, size=show_size(size), batch=batch, shares=shares))
    return rows


def kind_of(operator: str) -> str:
    """Sort an operator into one of the kinds."""
    for kind, parts in KINDS.items():
        if any(part in operator for part in parts):
            return kind
    return 'other'


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and keep what was asked for."""
    args, setting = parse_args(argv)
    rows: list[Row] = []
    for size, batch in zip(args.sizes, args.batch, strict=True):
        rows += profile_model(size, batch, args, setting)
    lines = [
        [row['mode'], row['size'], str(row['batch'])]
        + [f'{100 * share:.1f} %' for share in row['shares'].values()]
        for row in rows
    ]
    columns = ['pass', 'image', 'batch', *rows[0]['shares']]
    print_table('Share of the time in operators', columns, lines, args)
    write_json(args, rows)


if __name__ == '__main__':
    main()
