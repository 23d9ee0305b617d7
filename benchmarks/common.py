"""What the benchmarks share: options, interleaved timing, and how results are shown and kept."""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from mmlavit.models.backbones.arch import ARCHS

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
PACKAGES = ('mmlavit', 'torch', 'onedl-mmdetection', 'onedl-mmsegmentation', 'onedl-mmpretrain')
# batches hold about as many pixels as one image of COCO
BATCH_PIXELS = 800 * 1344

Size = tuple[int, int]
Row = dict[str, Any]


class Setting(NamedTuple):
    """How everything in a run is executed.

    Attributes:
        device: Where.
        dtype: float32, or what autocast uses.
        threads: Threads of an operator on a CPU.
        rounds: How often everything is measured.
        seconds: What a measurement lasts at least; fast calls are repeated.
    """

    device: torch.device
    dtype: torch.dtype
    threads: int
    rounds: int
    seconds: float

    def precision(self) -> AbstractContextManager:
        """Enter mixed precision, unless float32 is asked for."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


class Spread(NamedTuple):
    """Median of several rounds, and half the range that holds their middle half."""

    median: float
    half_range: float

    @classmethod
    def of(cls, values: np.ndarray) -> 'Spread':
        """Summarize one value a round."""
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(float(median), float(high - low) / 2)

    def show(self, digits: int) -> str:
        """Write as ``median ± half_range``."""
        return f'{self.median:.{digits}f} ± {self.half_range:.{digits}f}'


def add_options(parser: argparse.ArgumentParser, sizes: Sequence[Size]) -> None:
    """Add the options that all benchmarks have.

    Args:
        parser: The script's own.
        sizes: ``(h, w)`` of the images by default.
    """
    parser.add_argument('--arch', choices=ARCHS, default='small', help='LaViT (%(default)s)')
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=size_of,
        default=list(sizes),
        metavar='HxW',
        help=f'image sizes ({" ".join(map(show_size, sizes))})',
    )
    parser.add_argument(
        '--batch',
        nargs='+',
        type=positive,
        metavar='N',
        help='images in a batch, one for all sizes or one a size '
        '(as many as have the pixels of one of 800x1344, at least 1)',
    )
    parser.add_argument('--device', type=_device, default='cpu', help='%(default)s, cuda, cuda:1')
    parser.add_argument(
        '--dtype', choices=DTYPES, default='fp32', help='fp32, or what autocast uses (%(default)s)'
    )
    parser.add_argument('--threads', type=positive, help='CPU threads (what torch chooses)')
    parser.add_argument(
        '--rounds', type=positive, default=7, help='measurements of everything (%(default)s)'
    )
    parser.add_argument(
        '--min-seconds',
        type=float,
        default=0.2,
        metavar='S',
        help='what a measurement lasts at least (%(default)s)',
    )
    parser.add_argument('--json', type=output_file, metavar='FILE', help='write all figures there')


def read_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Setting:
    """Complete ``args.batch``, and set up torch.

    Args:
        parser: Reports what does not fit, and ends the program.
        args: What it has parsed.
    """
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
    return Setting(
        args.device, DTYPES[args.dtype], torch.get_num_threads(), args.rounds, args.min_seconds
    )


def interleave(
    calls: Mapping[str, Callable[[], object]], setting: Setting, title: str
) -> dict[str, np.ndarray]:
    """Time several calls, one after the other in every round, so that all see the same machine.

    Args:
        calls: What to time, by name. Each is called twice before the first round.
        setting: How.
        title: Stands beside the progress bar.

    Returns:
        Seconds of each call, one value a round.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with progress_bar() as progress:
        task = progress.add_task(title, total=len(names) * (setting.rounds + 1))
        repeats = {}
        for name in names:
            progress.update(task, description=f'{title}: {name}, warm-up')
            calls[name]()
            repeats[name] = max(1, round(setting.seconds / clock(calls[name], setting)))
            progress.advance(task)
        for i in range(setting.rounds):
            # nobody always runs behind the same neighbour
            first = i % len(names)
            for name in names[first:] + names[:first]:
                progress.update(task, description=f'{title}: {name}')
                seconds[name].append(clock(calls[name], setting, repeats[name]))
                progress.advance(task)
    return {name: np.array(values) for name, values in seconds.items()}


def clock(call: Callable[[], object], setting: Setting, repeats: int = 1) -> float:
    """Seconds of one call, as a mean of ``repeats``."""
    synchronize(setting.device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(setting.device)
    return (time.perf_counter() - start) / repeats


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def forward(model: Callable[..., object], images: Tensor, setting: Setting) -> None:
    """Predict as the toolboxes do."""
    with torch.no_grad(), setting.precision():
        model(images)


def training_step(model: Callable[[Tensor], Any], images: Tensor, setting: Setting) -> None:
    """Add to the gradients of a backbone: forward and backward pass, no optimizer."""
    with setting.precision():
        maps = model(images)
        # One channel of each: the mean of a map behind a LayerNorm has no gradient.
        loss = torch.stack([x[:, 0].sum() for x in maps]).sum()
    loss.backward()


def progress_bar() -> Progress:
    """Make a bar on stderr that vanishes when done, so that stdout holds the results only."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown.

    Args:
        title: Its caption.
        columns: Their names; all but the first are aligned on the right.
        rows: Cells of each row.
    """
    table = Table(box=MARKDOWN)
    for i, column in enumerate(columns):
        table.add_column(column, justify='right' if i else 'left', no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # wider than any table: a line that a terminal breaks can still be copied
    console = Console(width=400, highlight=False)
    console.print(f'\n{title}\n')
    with console.capture() as capture:
        console.print(table)
    lines = (line.strip() for line in capture.get().splitlines())
    print('\n'.join(line for line in lines if line), flush=True)


def write_json(path: Path | None, args: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Write everything measured so far, with what it was measured on.

    Args:
        path: The file, None for none.
        args: Options of the script.
        rows: What was measured.
    """
    if path is None:
        return
    options = {key: str(value) if isinstance(value, (Path, torch.device)) else value
               for key, value in vars(args).items()}  # fmt: skip
    content = {'machine': machine(args.device), 'options': options, 'rows': rows}
    path.write_text(json.dumps(content, indent=2))


def machine(device: torch.device) -> Row:
    """Tell on what and with which releases a run was measured."""
    cpu = platform.processor()
    info = Path('/proc/cpuinfo')
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith('model name')]
        cpu = names[0].partition(':')[2].strip() if names else cpu
    found = {
        'cpu': cpu,
        'vector instructions': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
    if device.type == 'cuda':
        found['gpu'] = torch.cuda.get_device_name(device)
    return found


def print_machine(args: argparse.Namespace) -> None:
    """Print the line that belongs above every table."""
    print(', '.join(f'{key} {value}' for key, value in machine(args.device).items()))
    print(f'{args.dtype}, {args.rounds} rounds', flush=True)


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
