"""What the benchmarks share: options, and how results are shown and kept."""

import argparse
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from timing import Setting

from mmlavit.models.backbones.arch import ARCHS

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
# torch, and what the peers come from
PACKAGES = ('torch', 'onedl-mmdetection', 'onedl-mmpretrain', 'timm')
SIZES = [(224, 224), (512, 512), (800, 1344)]
# batches hold about as many pixels as one image of COCO
BATCH_PIXELS = 800 * 1344

Size = tuple[int, int]
Row = dict[str, Any]


def make_parser(description: str | None, dtype: str) -> argparse.ArgumentParser:
    """Make a parser with what all benchmarks take; ``dtype`` is used where nobody says which."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--arch', choices=ARCHS, default='small', help='LaViT (%(default)s)')
    parser.add_argument(
        '--dtype', choices=DTYPES, default=dtype, help='fp32, or what autocast uses (%(default)s)'
    )
    parser.add_argument('--json', type=output_file, metavar='FILE', help='write all figures there')
    return parser


def add_timing(parser: argparse.ArgumentParser) -> None:
    """Add the options of everything that is timed."""
    parser.add_argument(
        '--sizes', nargs='+', type=size_of, default=SIZES, metavar='HxW',
        help=f'image sizes ({" ".join(map(show_size, SIZES))})',
    )  # fmt: skip
    parser.add_argument(
        '--batch', nargs='+', type=positive, metavar='N',
        help='images in a batch, one for all sizes or one a size '
        '(as many as have the pixels of one of 800x1344, at least 1)',
    )  # fmt: skip
    parser.add_argument('--device', type=_device, default='cpu', help='%(default)s, cuda, cuda:1')
    parser.add_argument('--threads', type=positive, help='CPU threads (what torch chooses)')
    parser.add_argument(
        '--rounds', type=positive, default=7, help='measurements of everything (%(default)s)'
    )
    parser.add_argument(
        '--min-seconds', type=float, default=0.2, metavar='S',
        help='what a measurement lasts at least (%(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--compile',
        action='store_true',
        help='time everything compiled as well, and compare the faster way of each side; on a CPU '
        'compiling takes minutes a model',
    )


def read_options(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, and remember it as ``args.command``."""
    args = parser.parse_args(argv)
    script = f'benchmarks/{Path(sys.argv[0]).name}'
    args.command = shlex.join(['python', script, *(sys.argv[1:] if argv is None else argv)])
    return args


def read_setting(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Setting:
    """Complete ``args.batch``, and set up torch; the parser reports what does not fit."""
    if args.batch is None:
        args.batch = [max(1, round(BATCH_PIXELS / (h * w))) for h, w in args.sizes]
    elif len(args.batch) not in (1, len(args.sizes)):
        parser.error(
            f'argument --batch: {len(args.batch)} values for {len(args.sizes)} sizes, '
            'expected one for all or one a size'
        )
    elif len(args.batch) == 1:
        args.batch *= len(args.sizes)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    threads, dtype = torch.get_num_threads(), DTYPES[args.dtype]
    return Setting(args.device, dtype, threads, args.rounds, args.min_seconds, args.compile)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], args: argparse.Namespace
) -> None:
    """Print a table in Markdown, under the command that makes it and what it ran on."""
    table = Table(box=MARKDOWN)
    for i, column in enumerate(columns):
        table.add_column(column, justify='right' if i else 'left', no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # wider than any table: a line that a terminal breaks can still be copied
    console = Console(width=400, highlight=False)
    with console.capture() as capture:
        console.print(table)
    lines = (line.strip() for line in capture.get().splitlines())
    origin = ', '.join(f'{key} {value}' for key, value in machine(args).items())
    print(f'\n{title}\n\n    {args.command}\n\n{origin}\n')
    print('\n'.join(line for line in lines if line), flush=True)


def write_json(args: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Write everything measured so far to ``args.json``, with what it was measured on."""
    if args.json is not None:
        content = dict(command=args.command, machine=machine(args), options=vars(args), rows=rows)
        args.json.write_text(json.dumps(content, indent=2, default=str))


def machine(args: argparse.Namespace) -> Row:
    """Tell which code a run has measured, on what, and with which releases."""
    found = {'commit': _commit()}
    if 'device' in args:
        found['dtype'] = args.dtype
        found['cpu'] = _cpu()
        found['vector instructions'] = torch.backends.cpu.get_cpu_capability()
        found['threads'] = str(torch.get_num_threads())
        if args.device.type == 'cuda':
            found['gpu'] = torch.cuda.get_device_name(args.device)
    found['python'] = platform.python_version()
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # then there is no peer from it
            found[package] = version(package)
    return found


def _commit() -> str:
    # the folder of this checkout alone: a copy of the code within another is none of its commits
    git = ['git', f'--git-dir={ROOT / ".git"}', f'--work-tree={ROOT}', 'describe', '--always']
    try:
        done = subprocess.run([*git, '--dirty'], capture_output=True, text=True, cwd=ROOT)
    except FileNotFoundError:
        return 'unknown'
    return done.stdout.strip() or 'unknown'


def _cpu() -> str:
    info = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*: (.*)', info.read_text() if info.exists() else '')
    return found[1] if found else platform.processor()


def show_size(size: Size) -> str:
    """Write a size as on the command line."""
    return f'{size[0]}x{size[1]}'


def size_of(text: str) -> Size:
    """Parse the size of an image."""
    height, x, width = text.lower().partition('x')
    try:
        return positive(height), positive(width if x else height)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f'{text!r}: expected HEIGHTxWIDTH in pixels, as 800x1344, or one side of a square'
        ) from None


def positive(text: str) -> int:
    """Parse a count."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: expected a whole number of at least 1')
    return int(text)


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition('\n')[0]
        raise argparse.ArgumentTypeError(f'{text!r} cannot be used: {reason}') from None
    return device


def output_file(text: str) -> Path:
    """Parse the path of a file to write, before anything is measured."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f'{text!r}: expected a file in a folder that exists')
    return path
