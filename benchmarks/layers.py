"""Time less attention (LA) against the vanilla attention (VA) it replaces, and what guides stages.

Four tables: the attention modules' forward pass, timed within the running model; the attention
residual's (AR) share of that pass; the attention modules' forward and backward pass, on their own;
and the whole model over its twin without LA. Examples::

    python benchmarks/layers.py --rounds 9 --json layers.json
    python benchmarks/layers.py --device cuda --dtype bf16 --batch 64 16 4

Times are medians of the rounds, ± half of the range that holds their middle half; ratios and
shares are medians of those of each round. VA is fused: it writes no logits to memory.
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
    positive,
    print_machine,
    print_table,
    read_options,
    show_size,
    training_step,
    write_json,
)
from stopwatch import Stopwatch, time_parts

from mmlavit.models import LaViT
from mmlavit.models.layers import FusedVanillaAttention, LessAttention, window_mask

SIZES = ((224, 224), (512, 512), (800, 1344))


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, SIZES)
    parser.add_argument(
        '--windows',
        nargs='+',
        type=positive,
        default=[7, 14],
        metavar='N',
        help='sides of windows (7 14)',
    )
    args = parser.parse_args(argv)
    return args, read_options(parser, args)


def time_within(
    size: Size, batch: int, window: int, args: argparse.Namespace, setting: Setting
) -> list[Row]:
    """Time the parts of a forward pass within LaViT and within its twin without LA.

    Args:
        size: ``(h, w)`` of the images.
        batch: Images.
        window: Side of a window.
        args: Options.
        setting: How.

    Returns:
        One row a stage that has LA, and one for AR.
    """
    model = LaViT(args.arch, window_size=window)
    # without AR, no later layer reads logits and all VA is fused
    twin = LaViT(args.arch, window_size=window, less_attention=False, attention_residual=False)
    images = torch.randn(batch, 3, *size, device=setting.device)
    watches = {}
    for name, subject in {'LA': model, 'VA': twin}.items():
        subject.to(setting.device).eval()
        watches[name] = Stopwatch(setting)
        for i, (stage, replaced) in enumerate(zip(subject.stages, model.stages, strict=True)):
            for block in stage.blocks[replaced.num_vanilla :]:
                watches[name].watch(f'attention {i}', block.attn)
            if stage.residual is not None:
                watches[name].watch(f'residual {i}', stage.residual)
    calls = {
        'LA': partial(forward, model, images, setting),
        'VA': partial(forward, twin, images, setting),
    }
    found = time_parts(calls, watches, setting, f'{show_size(size)}, window {window}')
    where: Row = dict(size=show_size(size), batch=batch, window=window)
    rows = []
    for i, stage in enumerate(model.stages):
        layers = len(stage.blocks) - stage.num_vanilla
        if layers:
            la, va = (found[name][f'attention {i}'] / layers for name in ('LA', 'VA'))
            rows.append(dict(part='attention, forward', **where, stage=i + 1, **_compare(la, va)))
    shares = {i: found['LA'][f'residual {i}'] / found['LA']['all'] for i in range(1, 4)}
    rows.append(
        dict(part='residual', **where, share=Spread.of(sum(shares.values()))._asdict(),
             stages={i + 1: Spread.of(share)._asdict() for i, share in shares.items()})
    )  # fmt: skip
    return rows


def time_training(
    size: Size, batch: int, windows: Sequence[int], args: argparse.Namespace, setting: Setting
) -> list[Row]:
    """Time forward and backward pass of the attention modules of each stage, on their own.

    Args:
        size: ``(h, w)`` of the images that the stages' maps belong to.
        batch: Images.
        windows: Sides of windows; stages whose map is smaller are left out.
        args: Options.
        setting: How.

    Returns:
        One row a window and stage.
    """
    arch = LaViT(args.arch).arch
    rows: list[Row] = []
    calls: dict[str, Callable[[], object]] = {}
    for window in windows:
        for i, dim in enumerate(arch.channels):
            h, w = (-(-side // (4 * 2**i)) for side in size)
            if min(h, w) < window:
                continue
            heads = dim // arch.head_width
            for name, kind in (('LA', LessAttention), ('VA', FusedVanillaAttention)):
                attention = kind(dim, heads, window).to(setting.device)
                key = f'{name}, window {window}, stage {i + 1}'
                calls[key] = _training_call(attention, (batch, h, w, dim), window, setting)
            rows.append(
                dict(part='attention, training', size=show_size(size), batch=batch, window=window,
                     stage=i + 1, channels=dim, heads=heads, map=show_size((h, w)))
            )  # fmt: skip
    seconds = interleave(calls, setting, 'attention, training')
    for row in rows:
        key = f'window {row["window"]}, stage {row["stage"]}'
        row.update(_compare(seconds[f'LA, {key}'], seconds[f'VA, {key}']))
    return rows


def _training_call(
    attention: LessAttention | FusedVanillaAttention,
    shape: tuple[int, int, int, int],
    window: int,
    setting: Setting,
) -> Callable[[], None]:
    batch, h, w, _ = shape
    device, heads = setting.device, attention.num_heads
    groups = batch * -(-h // window) * -(-w // window)
    x = torch.randn(shape, device=device, requires_grad=True)
    start = None
    if isinstance(attention, LessAttention):
        # as the layer before hands them on
        scores = (groups, heads, window**2, window**2)
        start = torch.randn(scores, device=device, dtype=setting.dtype, requires_grad=True)
    mask = window_mask((h, w), window, device)
    if mask is not None:
        mask = mask.repeat(batch, 1)
    gradients: list[torch.Tensor] = []

    def call() -> None:
        attention.zero_grad()
        x.grad = None
        if start is not None:
            start.grad = None
        with setting.precision():
            results = [r for r in attention(x, start, mask) if r is not None]
        if not gradients:
            # LA's logits get one too: the next layer reads them
            gradients.extend(map(torch.randn_like, results))
        torch.autograd.backward(results, gradients)

    return call


def time_models(size: Size, batch: int, args: argparse.Namespace, setting: Setting) -> list[Row]:
    """Time the whole model and its twin, in which all attention is vanilla.

    Args:
        size: ``(h, w)`` of the images.
        batch: Images.
        args: Options.
        setting: How.

    Returns:
        Two rows: forward pass, training step.
    """
    models = {
        'LA': LaViT(args.arch).to(setting.device),
        'VA': LaViT(args.arch, less_attention=False).to(setting.device),
    }
    images = torch.randn(batch, 3, *size, device=setting.device)
    rows = []
    for mode, step in (('forward', forward), ('training', training_step)):
        for model in models.values():
            model.train(mode == 'training')
        calls = {name: partial(step, model, images, setting) for name, model in models.items()}
        seconds = interleave(calls, setting, f'{show_size(size)}, whole model, {mode}')
        rows.append(
            dict(part='model', size=show_size(size), batch=batch, mode=mode,
                 **_compare(seconds['LA'], seconds['VA']))
        )  # fmt: skip
    return rows


def _compare(la: np.ndarray, va: np.ndarray) -> Row:
    return {
        'la_milliseconds': Spread.of(1000 * la)._asdict(),
        'va_milliseconds': Spread.of(1000 * va)._asdict(),
        'la_over_va': Spread.of(la / va)._asdict(),
    }


def _cells(row: Row) -> list[str]:
    """Show what :func:`_compare` has found."""
    la, va, ratio = (
        Spread(**row[key]) for key in ('la_milliseconds', 'va_milliseconds', 'la_over_va')
    )
    return [la.show(2), va.show(2), ratio.show(2)]


def print_rows(rows: Sequence[Row]) -> None:
    """Print the rows of one part."""
    times = ['LA, ms', 'VA, ms', 'LA over VA']
    match rows[0]['part']:
        case 'attention, forward':
            title, columns = 'One attention module, forward pass, within the model', times
            columns = ['window', 'image', 'batch', 'stage', *columns]
            keys = ['window', 'size', 'batch', 'stage']
        case 'attention, training':
            title = f'One attention module, forward and backward, {rows[0]["size"]}'
            keys = ['window', 'stage', 'channels', 'heads', 'map', 'batch']
            columns = [*keys, *times]
        case 'model':
            title, keys = 'Whole model', ['mode', 'size', 'batch']
            columns = ['pass', 'image', 'batch', *times]
        case _:
            title = 'Attention residual, share of the forward pass'
            keys = ['window', 'size', 'batch']
            columns = ['window', 'image', 'batch', *(f'into stage {i}' for i in (2, 3, 4)), 'all']
    lines = []
    for row in rows:
        line = [str(row[key]) for key in keys]
        if 'share' in row:
            shares = [*row['stages'].values(), row['share']]
            line += [f'{100 * Spread(**share).median:.1f} %' for share in shares]
        else:
            line += _cells(row)
        lines.append(line)
    print_table(title, columns, lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and keep what was asked for."""
    args, setting = parse_args(argv)
    print_machine(args)
    pairs = list(zip(args.sizes, args.batch, strict=True))
    rows: list[Row] = []
    for window in args.windows:
        for size, batch in pairs:
            rows += time_within(size, batch, window, args, setting)
    for part in ('attention, forward', 'residual'):
        print_rows([row for row in rows if row['part'] == part])
    write_json(args.json, args, rows)
    training = time_training(*pairs[0], args.windows, args, setting)
    print_rows(training)
    rows += training
    write_json(args.json, args, rows)
    whole = [row for size, batch in pairs for row in time_models(size, batch, args, setting)]
    print_rows(whole)
    write_json(args.json, args, rows + whole)


if __name__ == '__main__':
    main()
