"""Train LaViT-nano, its ablations and peers of its size on photographs, all in the same way.

Data, schedule, augmentation and optimizer are those of `configs/real_data`; the backbone, the
learning rate and the seed change. Each model trains once with each learning rate; the one that is
best on images held out of the training set trains with all seeds, which are measured on the test
set. An ablation takes LaViT's rate. Needs the data (docs/real_data.md). Examples::

    python benchmarks/real_data.py cifar10 --json cifar10.json --png cifar10.png
    python benchmarks/real_data.py cifar10 --models lavit no-ar no-dp --seeds 0 1 2
    python benchmarks/real_data.py bccd --start cifar10

Each run is a folder of `work_dirs/real_data`, made by tools/train.py and tools/test.py. What is
there is not run again, and a run that was stopped goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from common import ROOT, Row, output_file, positive, print_table, read_options, write_json
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from real_data_figure import draw_curves
from real_data_models import ALL, PEERS


class Task(NamedTuple):
    """A data set, with the model that learns it.

    Attributes:
        config: Whose backbone is exchanged.
        metric: Its name in the log.
        title: Its name in a table.
        unit: What the log's value is multiplied by.
        hold_out: Holds images out of training, for the choice of a learning rate.
        rates: The learning rates to choose from.
    """

    config: str
    metric: str
    title: str
    unit: float
    hold_out: Callable[[Config, argparse.Namespace], None]
    rates: tuple[float, ...] = (1e-3, 2e-3, 5e-4)


class Run(NamedTuple):
    """One training."""

    task: str
    start: str
    model: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f'{self.task}_{self.start}/{self.model}_lr{self.rate:g}_seed{self.seed}'


def hold_out_photographs(cfg: Config, args: argparse.Namespace) -> None:
    """Train on as many images of each class of CIFAR-10, and choose on every 25th other one."""
    train = cfg.train_dataloader.dataset
    count = sum(len(files) for *_, files in os.walk(ROOT / train.data_root / train.data_prefix))
    images, held_out = min(args.images, count), range(1, count, 25)
    spread = (i * count // images for i in range(images))
    train.indices = [i for i in spread if i not in held_out]
    choose = dict(train, indices=list(held_out), pipeline=cfg.test_pipeline)
    cfg.val_dataloader.dataset = choose


def hold_out_smears(cfg: Config, args: argparse.Namespace) -> None:
    """Choose on every fifth training image of BCCD, and train on the others."""
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    whole = json.loads((ROOT / train.data_root / train.ann_file).read_text())
    for dataset, is_chosen in ((train, bool), (val, lambda fifth: not fifth)):
        images = [image for i, image in enumerate(whole['images']) if is_chosen(i % 5)]
        ids = {image['id'] for image in images}
        boxes = [box for box in whole['annotations'] if box['image_id'] in ids]
        file = args.out / f'bccd_{len(images)}_images.json'
        file.write_text(json.dumps(dict(whole, images=images, annotations=boxes)))
        dataset.ann_file = str(file)
    val.data_prefix = train.data_prefix
    cfg.val_evaluator.ann_file = val.ann_file


def hold_out_nothing(cfg: Config, args: argparse.Namespace) -> None:
    """Choose on the validation images, which CamVid has."""


TASKS = {
    'cifar10': Task(
        'lavit-nano_cifar10', 'accuracy/top1', 'top-1 accuracy, %', 1, hold_out_photographs
    ),
    'bccd': Task('retinanet_lavit-nano_bccd', 'coco/bbox_mAP', 'box AP', 100, hold_out_smears),
    'camvid': Task('semantic-fpn_lavit-nano_camvid', 'mIoU', 'mIoU, %', 1, hold_out_nothing),
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('task', choices=TASKS, help='what to learn')
    parser.add_argument('--start', choices=('scratch', 'cifar10'), default='scratch',
                        help="what the backbone starts from: the model's own run on CIFAR-10 "
                        'with the same seed, or nothing (%(default)s)')  # fmt: skip
    parser.add_argument('--models', nargs='+', choices=ALL, default=list(PEERS), help='(the peers)')
    parser.add_argument('--seeds', nargs='+', type=int, default=(0, 1, 2), help='(%(default)s)')
    parser.add_argument('--images', type=positive, default=10_000,
                        help='how many of CIFAR-10 to train on (%(default)s)')  # fmt: skip
    parser.add_argument('--data', type=Path, help='folder of the data sets (data)')
    parser.add_argument('--jobs', type=positive, default=os.cpu_count(),
                        help='runs at a time, each on one CPU thread (%(default)s)')  # fmt: skip
    parser.add_argument('--amp', action='store_true', help='train in bfloat16, on a GPU')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/real_data',
                        help='folder of the runs (%(default)s)')  # fmt: skip
    parser.add_argument('--json', type=output_file, metavar='FILE', help='write all figures there')
    parser.add_argument('--png', type=output_file, metavar='FILE', help='draw the curves there')
    args = read_options(parser, argv)
    args.out = args.out.resolve()
    for name in (args.task, *(['cifar10'] if args.start == 'cifar10' else [])):
        folder = (args.data or ROOT / 'data') / name
        if not folder.is_dir():
            parser.error(f'{folder} is missing: docs/real_data.md says how to fill it')
    return args


def make_config(run: Run, args: argparse.Namespace) -> Config:
    """Exchange what differs between runs."""
    task, model = TASKS[run.task], ALL[run.model]
    cfg = Config.fromfile(ROOT / 'configs/real_data' / f'{task.config}.py')
    indices = cfg.model.backbone.get('out_indices', (0, 1, 2, 3))
    cfg.model.backbone = dict(model.backbone, out_indices=indices)
    channels = [model.channels[i] for i in indices]
    if 'head' in cfg.model:
        cfg.model.head.in_channels = channels[-1]
    else:
        cfg.model.neck.in_channels = channels
    hook = dict(type='mmlavit.DiagonalityLossHook', **(model.diagonality or {}))
    cfg.custom_hooks = [hook] if model.diagonality else []
    cfg.custom_imports = dict(imports=['real_data_models'])
    if args.data is not None:
        move_data(cfg, args.data.resolve())
    task.hold_out(cfg, args)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.optim_wrapper.optimizer.lr = run.rate
    if args.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    cfg.randomness = dict(seed=run.seed)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    if run.start == 'cifar10':
        first = _first_task(args)
        rates, _ = choose_rates(first, [run.model])
        start = Run('cifar10', 'scratch', run.model, rates[run.model], run.seed)
        cfg.load_from = launch(start, make_config(start, first), first)['checkpoint']
    return cfg


def move_data(cfg: Config, folder: Path) -> None:
    """Look for the data set in another folder than ``data``."""
    for name in ('train', 'val', 'test'):
        dataset = cfg[f'{name}_dataloader'].dataset
        dataset.data_root = str(folder / Path(dataset.data_root).name)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if 'ann_file' in evaluator:
            evaluator.ann_file = str(folder / Path(evaluator.ann_file).relative_to('data'))


def _first_task(args: argparse.Namespace) -> argparse.Namespace:
    return argparse.Namespace(**vars(args) | dict(task='cifar10', start='scratch'))


def launch(run: Run, cfg: Config, args: argparse.Namespace) -> Row:
    """Train, test and say so, unless that is done, and return what was measured."""
    folder = args.out / run.name
    result = folder / 'result.json'
    if result.exists():
        return json.loads(result.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / 'run.py'
    text = cfg.pretty_text
    if config.exists() and config.read_text() != text:
        sys.exit(f'{folder} holds a run with other settings: remove it, or choose another --out')
    config.write_text(text)
    work_dir = folder / 'train'
    call(folder, 'train', str(config), '--work-dir', str(work_dir), '--resume')
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    metrics = folder / 'test.json'
    call(folder, 'test', str(config), checkpoint, '--work-dir', str(folder / 'test'),
         '--out', str(metrics), '--out-item', 'metrics')  # fmt: skip
    task = TASKS[run.task]
    row: Row = dict(run._asdict())
    row['curve'] = read_curve(work_dir, task)
    # a detector that finds nothing has no AP
    row['test'] = json.loads(metrics.read_text()).get(task.metric, 0.0) * task.unit
    row['parameters'] = count_backbone(cfg)
    row['checkpoint'] = checkpoint
    result.write_text(json.dumps(row))
    print(f'{run.name}: held out {_last(row):.2f}, test {row["test"]:.2f}', flush=True)
    return row


def call(folder: Path, tool: str, *argv: str) -> None:
    """Run a tool on one thread; its log stays beside the run."""
    path = f'{ROOT / "benchmarks"}{os.pathsep}{ROOT}'
    with (folder / f'{tool}.log').open('a') as log:
        done = subprocess.run(
            [sys.executable, str(ROOT / f'tools/{tool}.py'), *argv],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=path),
        )
    if done.returncode:
        sys.exit(f'{folder}: {tool}.py ended with code {done.returncode}, see {tool}.log there')


def read_curve(work_dir: Path, task: Task) -> dict[int, float]:
    """Read the metric on the held-out images, by epoch or iteration, from all launches."""
    found: dict[int, float] = {}
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines = map(json.loads, log.read_text().splitlines())
        found |= {x['step']: x[task.metric] * task.unit for x in lines if task.metric in x}
    return found


def count_backbone(cfg: Config) -> int:
    """Count the parameters of a config's backbone."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return sum(p.numel() for p in MODELS.build(cfg.model.backbone).parameters())


def launch_all(runs: Sequence[Run], args: argparse.Namespace) -> list[Row]:
    """Make several runs at a time."""
    configs = [make_config(run, args) for run in runs]
    with ThreadPoolExecutor(args.jobs) as pool:
        return list(pool.map(partial(launch, args=args), runs, configs))


def choose_rates(
    args: argparse.Namespace, names: Sequence[str]
) -> tuple[dict[str, float], list[Row]]:
    """Find each model's best learning rate, on the images held out."""
    models = dict.fromkeys(ALL[name].rate_of or name for name in names)
    rates = TASKS[args.task].rates
    runs = [Run(args.task, args.start, name, rate, 0) for rate in rates for name in models]
    rows = launch_all(runs, args)
    best = {row['model']: row['rate'] for row in sorted(rows, key=_last)}
    return {name: best[ALL[name].rate_of or name] for name in names}, rows


def _last(row: Row) -> float:
    return list(row['curve'].values() or [0.0])[-1]


def show(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Print a line a model: mean and standard deviation over seeds."""
    lines = []
    for name in args.models:
        own = [row for row in rows if row['model'] == name]
        tests = [row['test'] for row in own]
        spread = f' ± {stdev(tests):.2f}' if len(tests) > 1 else ''
        lines.append(
            [name, f'{own[0]["parameters"] / 1e6:.2f} M', f'{own[0]["rate"]:g}',
             f'{mean(tests):.2f}{spread}', ', '.join(f'{test:.2f}' for test in tests)]
        )  # fmt: skip
    columns = ['backbone', 'parameters', 'learning rate', TASKS[args.task].title, 'seeds']
    print_table(f'{args.task}, from {args.start}', columns, lines, args)


def learn(args: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Make all runs of a task: those that choose a learning rate, and those with all seeds."""
    rates, sweep = choose_rates(args, args.models)
    runs = [
        Run(args.task, args.start, name, rates[name], seed)
        for seed in args.seeds
        for name in args.models
    ]
    return sweep, launch_all(runs, args)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.start == 'cifar10':
        learn(_first_task(args))
    sweep, rows = learn(args)
    show(rows, args)
    write_json(args, [*sweep, *rows])
    if args.png is not None:
        draw_curves(rows, TASKS[args.task].title, args.png)


if __name__ == '__main__':
    main()
