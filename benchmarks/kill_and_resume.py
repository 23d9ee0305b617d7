"""Kill a training run again and again, resume it, and compare it with one that ran through.

A nano classifier learns a handful of Shapes images on the CPU. Each launch but the last is ended by
SIGKILL, at any moment after its start or while it writes a checkpoint, or by SIGTERM; the next one
resumes. At the end weights, states of optimizer and schedulers, and losses and learning rates of
all iterations must equal, bit by bit, those of a run that nobody stopped. Example::

    python benchmarks/kill_and_resume.py --kills 20 --preemptions 5

Exit code 1 if a launch does not go on, or if anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from mmlavit.checkpoints import load_checkpoint
from mmlavit.datasets.shapes import ShapesSpec, write_shapes

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
_base_ = {base!r}
train_dataloader = dict(batch_size=4, dataset=dict(data_root={data!r}))
val_dataloader = dict(batch_size=4, dataset=dict(data_root={data!r}))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs={epochs}, val_interval=2)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2), visualization=dict(enable=False))
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=20, help='launches that SIGKILL ends')
    parser.add_argument('--preemptions', type=int, default=5, help='launches that SIGTERM ends')
    parser.add_argument(
        '--epochs', type=int, help='epochs of 6 iterations (twice the number of launches)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments (%(default)s)')
    return parser.parse_args()


class Run:
    """A run that is launched until it has finished.

    Args:
        config: The config file.
        work_dir: Where its checkpoints go.
    """

    def __init__(self, config: Path, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.log = work_dir.with_suffix('.log')
        self._command = [sys.executable, str(ROOT / 'tools/train.py'), str(config)]
        self._command += ['--work-dir', str(work_dir), '--resume']

    def launch(self) -> subprocess.Popen:
        """Start, or go on from the newest complete checkpoint."""
        with self.log.open('wb') as log:
            return subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
            )

    def iterating(self) -> bool:
        """Whether the present launch trains already."""
        return b'Checkpoints will be saved' in self.log.read_bytes()

    def writing(self) -> bool:
        """Whether a checkpoint is being written, or a launch was killed in doing so."""
        return any(self.work_dir.glob('.*.pth.tmp'))

    def complain(self, code: int) -> None:
        """Stop with the end of the log."""
        sys.exit(f'a launch ended with code {code}:\n{self.log.read_text()[-3000:]}')


def stop_at_random(run: Run, number: signal.Signals, rng: random.Random, whole: float) -> str:
    """Launch a run and end it.

    Args:
        run: The run.
        number: The signal to send.
        rng: Chooses the moment.
        whole: Seconds that a launch is watched.

    Returns:
        What the run was doing, ``'finished'`` if it was faster.
    """
    process = run.launch()
    writes_to_wait_for = rng.randint(1, 2) if number == signal.SIGKILL and rng.random() < 0.5 else 0
    deadline = time.monotonic() + rng.uniform(0, whole)
    seen = was_writing = False
    if number == signal.SIGTERM or writes_to_wait_for:
        # What a launch may have found of the one before is removed by then.
        while process.poll() is None and not run.iterating():
            time.sleep(0.01)
        deadline = time.monotonic() + rng.uniform(0, 1)
    while process.poll() is None:
        if writes_to_wait_for:
            seen, was_writing = run.writing(), seen
            writes_to_wait_for -= seen and not was_writing
            if not writes_to_wait_for:
                time.sleep(rng.uniform(0, 0.02))
                break
            time.sleep(0.0005)
        elif time.monotonic() > deadline:
            break
        else:
            time.sleep(0.005)
    doing = 'training' if run.iterating() else 'starting'
    if process.poll() is None:
        # Workers too: a scheduler leaves nothing behind.
        os.killpg(process.pid, number)
    code = process.wait()
    if code == 0:
        return 'finished'
    if code not in (-number, 128 + number):
        run.complain(code)
    if number == signal.SIGTERM:
        return 'preempted'
    return 'writing a checkpoint' if run.writing() else doing


def differences(found: Any, expected: Any, name: str = '') -> list[str]:
    """Names of the entries in which two nested containers differ."""
    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            return [f'{name}: keys']
        pairs = [(found[key], expected[key], f'{name}.{key}') for key in expected]
    elif isinstance(expected, (list, tuple)):
        if len(found) != len(expected):
            return [f'{name}: length']
        pairs = [
            (a, b, f'{name}.{i}') for i, (a, b) in enumerate(zip(found, expected, strict=True))
        ]
    else:
        same = torch.equal(found, expected) if torch.is_tensor(expected) else found == expected
        return [] if same else [name]
    return [text for pair in pairs for text in differences(*pair)]


def state(path: Path) -> dict[str, Any]:
    """What must not depend on how often a run was stopped."""
    content = load_checkpoint(str(path))
    history = content['message_hub']['log_scalars']
    return {
        'weights': dict(content['state_dict']),
        'optimizer': content['optimizer'],
        'schedulers': content['param_schedulers'],
        'iterations': content['meta']['iter'],
        'history': {
            key: history[f'train/{key}'].data[0].tolist() for key in ('loss', 'lr', 'grad_norm')
        },
    }


def main() -> None:
    args = parse_args()
    signals = [signal.SIGKILL] * args.kills + [signal.SIGTERM] * args.preemptions
    rng = random.Random(args.seed)
    rng.shuffle(signals)
    epochs = args.epochs or max(2 * len(signals), 2)
    console = Console()
    with (
        TemporaryDirectory() as scratch,
        Progress(
            *Progress.get_default_columns()[:2],
            MofNCompleteColumn(),
            TextColumn('{task.fields[last]}'),
            console=console,
        ) as progress,
    ):
        root = Path(scratch)
        write_shapes(
            root / 'shapes',
            ShapesSpec(num_classification=(24, 8), num_scenes=(1, 1), classification_size=64),
        )
        config = root / 'nano.py'
        base, data = (
            ROOT / 'configs/shapes/lavit-nano_shapes-cls.py',
            root / 'shapes/classification',
        )
        config.write_text(CONFIG.format(base=str(base), data=str(data), epochs=epochs))
        task = progress.add_task('uninterrupted', total=1, last='')
        reference = Run(config, root / 'uninterrupted')
        start = time.monotonic()
        process = reference.launch()
        while process.poll() is None and not reference.iterating():
            time.sleep(0.01)
        startup = time.monotonic() - start
        if process.wait():
            reference.complain(process.returncode)
        epoch = (time.monotonic() - start - startup) / epochs
        progress.advance(task)

        task = progress.add_task('stopped', total=len(signals), last='')
        run, outcomes = Run(config, root / 'stopped'), Counter[str]()
        for number in signals:
            outcome = stop_at_random(run, number, rng, startup + 2 * epoch)
            if outcome == 'finished':
                break
            outcomes[outcome] += 1
            progress.update(task, advance=1, last=outcome)
        code = run.launch().wait()
        if code:
            run.complain(code)
        last = f'epoch_{epochs}.pth'
        wrong = differences(state(run.work_dir / last), state(reference.work_dir / last))
        iterations = state(reference.work_dir / last)['iterations']
    stops = ', '.join(f'{count} while {name}' for name, count in outcomes.items())
    verdict = f'DIFFERENT: {", ".join(wrong[:10])}' if wrong else 'equal bit by bit'
    console.print(
        f'{sum(outcomes.values())} stops ({stops.replace("while preempted", "by SIGTERM")}), '
        f'{iterations} iterations: weights, optimizer, schedules and losses are {verdict}.'
    )
    if outcomes.total() < len(signals):
        console.print(f'The run finished before the other stops: give more than {epochs} --epochs.')
    sys.exit(1 if wrong or outcomes.total() < len(signals) else 0)


if __name__ == '__main__':
    main()
