"""Time less attention (LA) against the vanilla attention (VA) it replaces, and what goes with it.

Two tables: the attention modules of each stage on their own, and the whole model over its all-VA
baseline, with the shares that the attention residual (AR) has of a forward pass and the
diagonality-preserving (DP) loss of a training step. Examples::

    python benchmarks/layers.py --rounds 9 --json layers.json
    python benchmarks/layers.py --device cuda --dtype bf16 --batch 64 16 4 --compile

Times are medians of the rounds, ± half of the range that holds their middle half; ratios and
shares are medians of those of each round. VA is fused: it writes no logits to memory.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from common import (
    Row,
    Size,
    add_timing,
    make_parser,
    positive,
    print_table,
    read_options,
    read_setting,
    show_size,
    write_json,
)
from recipe import TrainingLoss, forward, training_step
from timing import Setting, Spread, best, interleave, time_ways
from torch import Tensor, nn

from mmlavit.models import LaViT
from mmlavit.models.layers import AttentionResidual, LessAttention, VanillaAttention
from mmlavit.ops import Windows
from mmlavit.ops.windows import ceil_divide

RATIO = ('LA, ms', 'VA, ms', 'LA over VA')
KEYS = ('la_milliseconds', 'va_milliseconds', 'la_over_va')


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Setting]:
    """Parse the command line."""
    parser = make_parser(__doc__, 'fp32')
    add_timing(parser)
    parser.add_argument('--window', type=positive, default=7, help='its side (%(default)s)')
    args = read_options(parser, argv)
    return args, read_setting(parser, args)


def time_attention(size: Size, batch: int, args: argparse.Namespace, setting: Setting) -> list[Row]:
    """Time the attention modules of each stage on their own: forward, and with backward pass."""
    arch = LaViT(args.arch).arch
    rows: list[Row] = []
    for mode, step in (('forward', _predict), ('training', _train)):
        calls: dict[str, tuple[nn.Module, Callable[[Any], object]]] = {}
        found: list[Row] = []
        for i, dim in enumerate(arch.channels):
            h, w = (ceil_divide(side, 4 * 2**i) for side in size)
            windows, heads = Windows(args.window, batch, h, w), dim // arch.head_width
            x = torch.randn(batch, h, w, dim, device=setting.device)
            # as the layer before hands them on
            groups, n = batch * windows.rows * windows.cols, args.window**2
            logits = torch.randn(groups, heads, n, n, device=setting.device, dtype=setting.dtype)
            la = LessAttention(dim, args.window).to(setting.device)
            va = VanillaAttention(dim, heads, keep_logits=False).to(setting.device)
            given: dict[str, Any] = dict(x=x, windows=windows, setting=setting)
            calls[f'LA {i}'] = la, partial(step, logits=logits, **given)
            calls[f'VA {i}'] = va, partial(step, logits=None, **given)
            found.append(
                dict(part='attention', mode=mode, stage=i + 1, channels=dim, heads=heads,
                     map=show_size((h, w)), batch=batch)
            )  # fmt: skip
        times = time_ways(calls, setting, f'attention, {mode}')
        for i, row in enumerate(found):
            row.update(_compare(best(times[f'LA {i}']), best(times[f'VA {i}'])))
        rows += found
    return rows


def _predict(
    attention: Any, x: Tensor, logits: Tensor | None, windows: Windows, setting: Setting
) -> None:
    with torch.no_grad(), setting.precision():
        attention(x, logits, windows)


def _train(
    attention: Any, x: Tensor, logits: Tensor | None, windows: Windows, setting: Setting
) -> None:
    attention.zero_grad()
    inputs = [leaf if leaf is None else leaf.detach().requires_grad_() for leaf in (x, logits)]
    with setting.precision():
        outputs = attention(*inputs, windows)
    # LA's logits get a gradient too: the next layer reads them
    results = [output for output in outputs if output is not None]
    torch.autograd.backward(results, [result.detach() for result in results])


def time_models(size: Size, batch: int, args: argparse.Namespace, setting: Setting) -> Row:
    """Time LaViT and its all-VA baseline."""
    lavit, baseline = (
        LaViT(args.arch, args.window, less_attention=less).to(setting.device).eval()
        for less in (True, False)
    )
    images = torch.randn(batch, 3, *size, device=setting.device)
    name = show_size(size)
    row: Row = dict(part='model', size=name, batch=batch)
    row['residual_share'] = _share_of_residuals(lavit, images, setting, f'{name}, AR')
    predict = partial(forward, images=images, setting=setting)
    calls = {'LA': (lavit, predict), 'VA': (baseline, predict)}
    times = time_ways(calls, setting, f'{name}, forward')
    row['forward'] = _compare(best(times['LA']), best(times['VA']))
    train = partial(training_step, images=images, setting=setting)
    without = TrainingLoss(LaViT(args.arch, args.window).to(setting.device), False)
    losses = {'LA': TrainingLoss(lavit, True), 'no DP': without,
              'VA': TrainingLoss(baseline, False)}  # fmt: skip
    steps = {key: (loss.train(), train) for key, loss in losses.items()}
    la, plain, va = map(best, time_ways(steps, setting, f'{name}, training').values())
    row['training'] = _compare(la, va)
    row['training, no DP loss'] = _compare(plain, va)
    row['diagonality_share'] = Spread.of(1 - plain / la)._asdict()
    return row


def _share_of_residuals(model: LaViT, images: Tensor, setting: Setting, title: str) -> Row:
    """Time the attention residuals on what they get in a forward pass, and the pass itself."""
    inputs: list[tuple[nn.Module, Any]] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args: inputs.append((module, args)))
        for module in model.modules()
        if isinstance(module, AttentionResidual)
    ]
    predict = partial(forward, model, images, setting)
    predict()
    for handle in handles:
        handle.remove()

    def residuals() -> None:
        with torch.no_grad(), setting.precision():
            for module, args in inputs:
                module(*args)

    times = interleave({'AR': residuals, 'all': predict}, setting, title)
    return Spread.of(times['AR'] / times['all'])._asdict()


def _compare(la: np.ndarray, va: np.ndarray) -> Row:
    values = (1000 * la, 1000 * va, la / va)
    return {key: Spread.of(x)._asdict() for key, x in zip(KEYS, values, strict=True)}


def _cells(row: Row) -> list[str]:
    return [Spread(**row[key]).show(2) for key in KEYS]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and keep what was asked for."""
    args, setting = parse_args(argv)
    modules = time_attention(args.sizes[0], args.batch[0], args, setting)
    keys = ['mode', 'stage', 'channels', 'heads', 'map', 'batch']
    lines = [[*(str(row[key]) for key in keys), *_cells(row)] for row in modules]
    title = f'One attention module, {show_size(args.sizes[0])}, windows of {args.window}'
    print_table(title, ['pass', *keys[1:], *RATIO], lines, args)
    write_json(args, modules)
    models = [
        time_models(size, batch, args, setting)
        for size, batch in zip(args.sizes, args.batch, strict=True)
    ]
    lines = []
    for row in models:
        shares = {'forward': row['residual_share'], 'training': row['diagonality_share']}
        for mode in ('forward', 'training', 'training, no DP loss'):
            share = f'{100 * Spread(**shares[mode]).median:.1f} %' if mode in shares else ''
            cells = [*_cells(row[mode]), '', '']
            cells[3 if mode == 'forward' else 4] = share
            lines.append([mode, row['size'], str(row['batch']), *cells])
    title = f'LaViT over its all-VA baseline, windows of {args.window}'
    columns = ['pass', 'image', 'batch', *RATIO, 'share of AR', 'share of the DP loss']
    print_table(title, columns, lines, args)
    write_json(args, modules + models)


if __name__ == '__main__':
    main()
