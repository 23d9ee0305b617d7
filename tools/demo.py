"""Run the main job on the built-in Shapes data: pre-train, transfer, detect, segment.

Every step is a command that a user would type; the demo prints it before running it. It ends with
one table and with pictures of the predictions beside the ground truth, and with exit code 1 where a
figure is below its target.
"""

import argparse
import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


class Metric(NamedTuple):
    """One figure of a task."""

    name: str
    key: str  # in the metrics file
    factor: float  # makes percent of it
    target: float  # percent that the demo must reach


class Task(NamedTuple):
    """One row of the demo."""

    title: str
    config: str  # below configs/shapes
    metrics: tuple[Metric, ...]
    processes: int = 1  # that share a batch on a CPU with as many cores


TASKS = (
    Task('classification', 'lavit-nano_shapes-cls.py', (Metric('top-1', 'accuracy/top1', 1, 97),)),
    Task(
        'detection',
        'mask-rcnn_lavit-nano_shapes.py',
        (Metric('box AP', 'coco/bbox_mAP', 100, 75), Metric('mask AP', 'coco/segm_mAP', 100, 68)),
        processes=2,  # RoIAlign, NMS and the assignment of boxes run on one core each
    ),
    Task('segmentation', 'upernet_lavit-nano_shapes.py', (Metric('mIoU', 'mIoU', 1, 85),)),
)


def run(*command: object) -> float:
    """Run one of the tools and return its minutes; stop the demo with its exit code if it fails."""
    words = [str(word) for word in command]
    words.insert(0, 'bash' if words[0].endswith('.sh') else 'python')
    print('\n$ ' + ' '.join(words), flush=True)
    start = time.monotonic()
    # the environment's own python comes first, also to the launchers
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get('PATH', os.defpath)))
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, 'PATH': path}, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return (time.monotonic() - start) / 60


def compile_operators(log: Path) -> bool:
    """Compile mmcv's operators, where `make demo` left them out, behind what needs none.

    Returns:
        Whether this is the environment of ``make setup``, which has yet to install them.
    """
    if not Path(sys.prefix, 'packages.stamp').exists():
        return False
    command = ['nice', sys.executable, 'tools/setup_env.py', '--wheel']
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w') as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )

    def stop() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)

    atexit.register(stop)
    return True


def training_command(
    task: Task, work_dir: Path, options: Sequence[str], device: str, cores: int
) -> list[object]:
    """Word the command that trains a task's model, in several processes where that is faster."""
    config, options = f'configs/shapes/{task.config}', list(options)
    command: list[object] = ['tools/train.py', config]
    if task.processes > 1 and device == 'cpu' and cores >= task.processes:
        command = ['tools/dist_train.sh', config, task.processes]
        batch_size = Config.fromfile(ROOT / config).train_dataloader.batch_size
        options.append(f'train_dataloader.batch_size={batch_size // task.processes}')
    command += ['--work-dir', work_dir, '--no-validate']
    return [*command, '--cfg-options', *options] if options else command


def read_metrics(work_dir: Path) -> dict[str, float]:
    """Read what the last test in a work directory measured."""
    newest = max(work_dir.glob('*/*.json'), key=lambda path: path.parent.name)
    return json.loads(newest.read_text())


def below_target(task: Task, metrics: dict[str, float]) -> list[str]:
    """Say which figures of a task are below their targets."""
    return [
        f'{task.title}: {metric.name} is {value:.1f}, below {metric.target:g}'
        for metric in task.metrics
        if not (value := metric.factor * metrics[metric.key]) >= metric.target
    ]


def contact_sheet(folder: Path, out: Path, count: int = 12, columns: int = 4) -> None:
    """Put pictures of one size, spread evenly over a folder and those below it, side by side.

    Raises:
        FileNotFoundError: If there is no PNG file.
    """
    paths = sorted(folder.rglob('*.png'))
    if not paths:
        raise FileNotFoundError(f'{folder}: no picture to put on a sheet')
    paths = paths[:: max(1, len(paths) // count)][:count]
    pictures = [np.pad(mmcv.imread(str(path)), ((4, 4), (4, 4), (0, 0))) for path in paths]
    # few pictures make a short row, and the last row is filled up
    columns = min(columns, len(pictures))
    pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % columns)
    rows = [np.hstack(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]
    mmcv.imwrite(np.vstack(rows), str(out))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    text, place = 'logs, checkpoints and pictures go here', ROOT / 'work_dirs/demo'
    parser.add_argument('--work-dir', type=Path, default=place, help=text)
    text = 'also train the detector and the segmentor without the checkpoint, to see its gain'
    parser.add_argument('--from-scratch', action='store_true', help=text)
    args = parser.parse_args()
    work_dir = args.work_dir.resolve()

    start = time.monotonic()
    log = work_dir / 'operators.log'
    compiling = compile_operators(log)
    run('tools/dataset_converters/make_shapes.py', '--out', 'data/shapes', '--seed', 0)
    table = Table(title='LaViT-nano on unseen Shapes, in percent')
    for column in ('task', 'metric', 'value', 'target', 'minutes of training'):
        table.add_column(column)
    classifier = ''
    sheets: list[Path] = []
    missed: list[str] = []
    tasks = [(task, False) for task in TASKS]
    if args.from_scratch:
        tasks += [(task, True) for task in TASKS[1:]]
    for task, from_scratch in tasks:
        if compiling and task is TASKS[1]:
            print(f"\nDetection needs mmcv's operators; of their compiler: {log}", flush=True)
            run('tools/setup_env.py')
        title = f'{task.title} from scratch' if from_scratch else task.title
        config, folder = f'configs/shapes/{task.config}', work_dir / title.replace(' ', '_')
        options: list[str] = []
        if from_scratch:
            options = ['model.backbone.init_cfg=None']
        elif classifier:
            options = [f'model.backbone.init_cfg.checkpoint={classifier}']
        minutes = run(*training_command(task, folder, options, get_device(), os.cpu_count() or 1))
        checkpoint = (folder / 'last_checkpoint').read_text()
        classifier = classifier or checkpoint
        tested, pictures = folder / 'test', folder / 'pictures'
        test = ('tools/test.py', config, checkpoint)
        run(*test, '--work-dir', tested, '--show-dir', pictures)
        sheets.append(work_dir / f'{folder.name}.png')
        contact_sheet(pictures, sheets[-1])
        print(f'Pictures: {sheets[-1]}', flush=True)
        metrics = read_metrics(tested)
        if not from_scratch:
            missed += below_target(task, metrics)
        for i, metric in enumerate(task.metrics):
            value = metric.factor * metrics[metric.key]
            # training from scratch is there to be compared with
            target = '' if from_scratch else f'{metric.target:g}'
            spent = '' if i else f'{minutes:.1f}'
            table.add_row('' if i else title, metric.name, f'{value:.1f}', target, spent)

    console = Console()
    console.print(table)
    console.print(f'{(time.monotonic() - start) / 60:.1f} minutes in all', highlight=False)
    for sheet in sheets:
        console.print(f'Pictures: {sheet}', soft_wrap=True, highlight=False)
    if missed:
        raise SystemExit('\n'.join(missed))


if __name__ == '__main__':
    main()
