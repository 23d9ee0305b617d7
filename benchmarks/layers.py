"""Time less attention (LA) against the vanilla attention (VA) it replaces, and what guides stages.

Four tables: the attention modules' forward pass, and forward and backward pass, on their own; the
attention residual's (AR) share of a forward pass of the model; and the whole model over its twin
without LA. Examples::

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
from torch import nn

from mmlavit.models import LaViT
from mmlavit.models.layers import FusedVanillaAttention, LessAttention, window_mask
from mmlavit.models.layers.regions import Region, cut_pairs, regions
from mmlavit.models.layers.streamed_block import attend

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


def time_residual(
    size: Size, batch: int, window: int, args: argparse.Namespace, setting: Setting
) -> Row:
    """Time the attention residuals within a forward pass of LaViT.

    Args:
        size: ``(h, w)`` of the images.
        batch: Images.
        window: Side of a window.
        args: Options.
        setting: How.

    Returns:
        Their share of the pass.
    """
    model = LaViT(args.arch, window_size=window).to(setting.device).eval()
    images = torch.randn(batch, 3, *size, device=setting.device)
    watch = Stopwatch(setting)
    for i, stage in enumerate(model.stages):
        if stage.residual is not None:
            watch.watch(f'residual {i}', stage.residual)
    title = f'{show_size(size)}, window {window}'
    found = time_parts(partial(forward, model, images, setting), watch, setting, title)
    shares = {i: found[f'residual {i}'] / found['all'] for i in range(1, 4)}
    return dict(
        part='residual', size=show_size(size), batch=batch, window=window,
        share=Spread.of(sum(shares.values()))._asdict(),
        stages={i + 1: Spread.of(share)._asdict() for i, share in shares.items()},
    )  # fmt: skip


def time_attention(
    mode: str,
    size: Size,
    batch: int,
    windows: Sequence[int],
    args: argparse.Namespace,
    setting: Setting,
) -> list[Row]:
    """Time the attention modules of each stage, on their own.

    Args:
        mode: ``'forward'``, or ``'training'`` for forward and backward pass.
        size: ``(h, w)`` of the images that the stages' maps belong to.
        batch: Images.
        windows: Sides of windows; stages whose map is smaller are left out.
        args: Options.
        setting: How.

    Returns:
        One row a window and stage.
    """
    arch = LaViT(args.arch).arch
    make = {'forward': _forward_call, 'training': _training_call}[mode]
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
                calls[key] = make(attention, *_inputs(attention, (batch, h, w, dim), setting),
                                  setting)  # fmt: skip
            rows.append(
                dict(part=f'attention, {mode}', size=show_size(size), batch=batch, window=window,
                     stage=i + 1, channels=dim, heads=heads, map=show_size((h, w)))
            )  # fmt: skip
    seconds = interleave(calls, setting, f'attention, {mode}')
    for row in rows:
        key = f'window {row["window"]}, stage {row["stage"]}'
        row.update(_compare(seconds[f'LA, {key}'], seconds[f'VA, {key}']))
    return rows


def _inputs(
    attention: LessAttention | FusedVanillaAttention,
    shape: tuple[int, int, int, int],
    setting: Setting,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """A map ``(B, h, w, dim)``, the logits that LA starts from, and the mask of its windows."""
    batch, h, w, _ = shape
    device, heads, window = setting.device, attention.num_heads, attention.window
    groups = batch * -(-h // window) * -(-w // window)
    start = None
    if isinstance(attention, LessAttention):
        # as the layer before hands them on
        scores = (groups, heads, window**2, window**2)
        start = torch.randn(scores, device=device, dtype=setting.dtype)
    mask = window_mask((h, w), window, device)
    return (
        torch.randn(shape, device=device),
        start,
        None if mask is None else mask.repeat(batch, 1),
    )


def _forward_call(
    attention: LessAttention | FusedVanillaAttention,
    x: torch.Tensor,
    start: torch.Tensor | None,
    mask: torch.Tensor | None,
    setting: Setting,
) -> Callable[[], None]:
    """Predict as a block does: on a CPU in tiles, with the map and the logits put together."""
    fitted, scores = _fit(attention, x, start)

    def call() -> None:
        with torch.no_grad(), setting.precision():
            if fitted is not None:
                attend(nn.Identity(), attention, x, scores, fitted)
            else:
                torch.add(x, attention(x, start, mask)[0])

    return call


def _training_call(
    attention: LessAttention | FusedVanillaAttention,
    x: torch.Tensor,
    start: torch.Tensor | None,
    mask: torch.Tensor | None,
    setting: Setting,
) -> Callable[[], None]:
    fitted, scores = _fit(attention, x, start)
    starts = scores or ([] if start is None else [start])
    inputs = [tensor.requires_grad_() for tensor in (x, *starts)]
    gradients: list[torch.Tensor] = []

    def call() -> None:
        attention.zero_grad()
        for tensor in inputs:
            tensor.grad = None
        with setting.precision():
            if fitted is not None:
                out, logits = attention(x, scores, None, fitted)
                results = [out, *(logits or [])]
            else:
                results = [r for r in attention(x, start, mask) if r is not None]
        if not gradients:
            # LA's logits get one too: the next layer reads them
            gradients.extend(map(torch.randn_like, results))
        torch.autograd.backward(results, gradients)

    return call


def _fit(
    attention: LessAttention | FusedVanillaAttention,
    x: torch.Tensor,
    start: torch.Tensor | None,
) -> tuple[list[Region] | None, list[torch.Tensor] | None]:
    """The map's regions, on a CPU, and what the attention starts from, one tensor a region."""
    if x.device.type != 'cpu':
        return None, None
    scores = None if start is None else cut_pairs(start, x.shape, attention.window)
    return regions(x.shape[1:3], attention.window), scores


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
        case 'attention, forward' | 'attention, training' as part:
            passes = 'forward' if part.endswith('forward') else 'forward and backward'
            title = f'One attention module, {passes}, {rows[0]["size"]}'
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
    for mode in ('forward', 'training'):
        found = time_attention(mode, *pairs[0], args.windows, args, setting)
        print_rows(found)
        rows += found
        write_json(args.json, args, rows)
    shares = [
        time_residual(size, batch, window, args, setting)
        for window in args.windows
        for size, batch in pairs
    ]
    print_rows(shares)
    rows += shares
    write_json(args.json, args, rows)
    whole = [row for size, batch in pairs for row in time_models(size, batch, args, setting)]
    print_rows(whole)
    write_json(args.json, args, rows + whole)


if __name__ == '__main__':
    main()
