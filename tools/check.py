"""Find what is wrong with a config, its data and its checkpoints before training.

One line a finding, and exit code 1 where one of them is FAIL. A warning is what upstream drops,
converts or tolerates.
"""

import io
import resource
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from math import isfinite
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner, find_latest_checkpoint

from mmlavit.checkpoints import safe_loading
from mmlavit.checks.coco import Finding, unusable_entries
from mmlavit.checks.config import (
    LOADERS,
    check_work_dir,
    missing_paths,
    misspelt_keys,
    unmatched_keys,
    wrong_ann_files,
)
from mmlavit.checks.datasets import (
    base_datasets,
    dataset_name,
    empty_classes,
    files_left_out,
    listing,
)
from mmlavit.checks.samples import data_findings
from mmlavit.cli.configs import read_config, training_config
from mmlavit.cli.launch import build_runner, explain
from mmlavit.cli.parsers import TrainingParser
from mmlavit.engine.hooks.dataset_check_hook import DatasetCheckHook, images_of, unwrapped
from mmlavit.errors import UserError
from mmlavit.models.key_differences import check_belongs


class Checked(Exception):
    """Ends the run: all is found that can be."""


class Report:
    """Prints findings as they come, each once, and counts them."""

    def __init__(self) -> None:
        self.stream, self.said = sys.stdout, set[str]()
        self.counts = {'ok': 0, 'warn': 0, 'FAIL': 0}

    def say(self, level: str, *texts: str) -> None:
        """Print findings of a level: ``ok``, ``warn`` or ``FAIL``."""
        for text in texts:
            if text not in self.said:
                self.said.add(text)
                self.counts[level] += 1
                line = ' '.join(part.strip() for part in text.splitlines())
                print(f'{level:4}  {line}', file=self.stream, flush=True)

    def add(self, findings: Iterable[Finding], name: str) -> None:
        """Print failures one by one and warnings by kind."""
        warned: dict[str, list[str]] = {}
        for level, text, kind in findings:
            if level == 'FAIL':
                self.say(level, text)
            else:
                warned.setdefault(kind, []).append(text)
        for kind, texts in sorted(warned.items()):
            self.say('warn', f'{kind}, in {name}: {len(texts)} ({listing(texts, 3)})')

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Report whatever is raised inside as a failure, instead of a traceback."""
        try:
            yield
        except Checked:
            raise
        except Exception as error:
            self.say('FAIL', explain(error) or f'{what}: {type(error).__name__}: {error}')


class Reporter(DatasetCheckHook):
    """Reports all that :class:`DatasetCheckHook` finds, and what the first step gives."""

    priority = 'HIGHEST'

    def __init__(self, report: Report, data: bool) -> None:
        super().__init__()
        self.report, self.data = report, data

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Say what of the weights to start from does not fit."""
        if not runner._resume:
            try:
                check_belongs(checkpoint, unwrapped(runner.model), str(runner._load_from))
            except UserError as error:
                text = 'mmengine loads what fits, and the rest starts anew'
                self.report.say('warn', f'{error}\n{text}')

    def before_train(self, runner: Runner) -> None:
        """Check the data of all splits, and end the run where it is wrong."""
        model, report = unwrapped(runner.model), self.report
        own = [hook for hook in runner.hooks if isinstance(hook, DatasetCheckHook)]
        self.num_masks = next((hook.num_masks for hook in own if hook is not self), 50)
        report.say('ok', f'model {type(model).__name__}, load_from is {runner._load_from}')
        if keys := unmatched_keys(runner.cfg, model):
            report.say('warn', f'custom_keys that match no parameter: {", ".join(keys)}')
        seen: list[Any] = []
        for split in ('train', 'val', 'test'):
            with report.attempt(f'{split}_dataloader'):
                loop = getattr(runner, f'{split}_loop')
                config = loop and runner.cfg.get(f'{split}_dataloader').dataset
                if loop is None or config in seen:
                    continue
                seen.append(config)
                failures = report.counts['FAIL']
                report.say('FAIL', *self.problems(runner, split))
                for dataset in base_datasets(loop.dataloader.dataset):
                    report.add(self.findings(dataset, model, split), dataset_name(dataset))
                    if report.counts['FAIL'] == failures:
                        text = f'{split}: {dataset_name(dataset)}, {len(dataset)} samples'
                        report.say('ok', text + (' load' if self.data else ''))
        if report.counts['FAIL']:
            raise Checked
        super().before_train(runner)

    def findings(self, dataset: Any, model: torch.nn.Module, split: str) -> Iterator[Finding]:
        """What a run does not look at."""
        training = split == 'train'
        for label in empty_classes(dataset):
            text = f'{dataset_name(dataset)}: no image belongs to {label}'
            yield Finding('FAIL' if training else 'warn', text, 'classes without images')
        for path in files_left_out(dataset):
            yield Finding('warn', path, 'images of another suffix, which are not used')
        if self.data and hasattr(dataset, 'prepare_data'):
            masks = bool(self.num_masks)
            yield from data_findings(dataset, model, masks, training, sys.stderr)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Report the loss, the memory and the batch size of the first step, and end the run."""
        losses = {name: float(value) for name, value in (outputs or {}).items()}
        wrong = [f'{name} is {value}' for name, value in losses.items() if not isfinite(value)]
        self.report.say('FAIL', *(f'first step: {w}, expected a finite number' for w in wrong))
        if torch.cuda.is_available():
            memory = f'{torch.cuda.max_memory_allocated() / 2**20:.0f} MB of GPU memory'
        else:
            # Linux counts it in kB
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            memory = f'{used:.0f} MB of memory'
        if not wrong:
            text = f'first step on a batch of {images_of(data_batch)}: loss {losses["loss"]:.4g}'
            self.report.say('ok', f'{text}, {memory} at most')
        raise Checked


def check(args: Namespace, report: Report) -> None:
    """Train until the first iteration is done, without leaving a trace."""
    cfg = read_config(args.config, args.cfg_options)
    report.say('FAIL', *(f'{cfg.filename}: {text}' for text in misspelt_keys(cfg)))
    loaders = [name for name in LOADERS if isinstance(cfg.get(name), dict)]
    for name in loaders:
        report.say('FAIL', *missing_paths(cfg, name), *wrong_ann_files(cfg, name))
    with report.attempt('work dir'):
        check_work_dir(args.work_dir or cfg.get('work_dir') or 'work_dirs')
    if report.counts['FAIL']:
        return
    cfg = training_config(args)
    report.say('ok', f'keys and paths of {cfg.filename}')
    with TemporaryDirectory() as folder:
        leave_no_trace(cfg, folder)
        try:
            runner = build_runner(cfg)
            runner.register_hook(Reporter(report, args.data))
            runner.train()
        except Checked:
            return
        except Exception:
            # Errors of mmdet name a key, and not the entry that lacks it.
            for name in loaders:
                report.say('FAIL', *(f.text for f in unusable_entries(cfg[name].dataset)))
            raise


def leave_no_trace(cfg: Config, folder: str) -> None:
    """Let a run write into a folder to throw away alone."""
    if cfg.get('resume') and cfg.get('load_from') is None:
        cfg.load_from = find_latest_checkpoint(cfg.work_dir)
        cfg.resume = cfg.load_from is not None
    cfg.update(work_dir=folder, log_level='ERROR', launcher='none')
    if cfg.get('visualizer'):
        cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; return 1 where one of them is a failure, else 0."""
    parser = TrainingParser(__doc__)
    parser.add_argument(
        '--data', action='store_true', help='load every sample of the datasets, which takes a while'
    )
    args, report = parser.parse_args(argv), Report()
    with (
        safe_loading(trust=args.trust_checkpoint),
        redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')
        with report.attempt('check'):
            check(args, report)
    print(f'{report.counts["FAIL"]} wrong, {report.counts["warn"]} to look at')
    return int(report.counts['FAIL'] > 0)


if __name__ == '__main__':
    sys.exit(main())
