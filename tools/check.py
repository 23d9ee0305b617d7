"""Find what is wrong with a config, its data and its checkpoints before training.

One line a finding, and exit code 1 where one of them is FAIL. A warning is what upstream drops,
converts or tolerates.
"""

import io
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from tempfile import TemporaryDirectory
from typing import Any, cast

from mmengine.config import Config
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmlavit.checkpoints import safe_loading
from mmlavit.checks.build import config_errors
from mmlavit.checks.coco import unusable_entries
from mmlavit.checks.config import check_work_dir, missing_paths, misspelt_keys, wrong_ann_files
from mmlavit.checks.datasets import (
    base_datasets,
    check_heads,
    check_labels,
    check_samples,
    class_heads,
    dataset_name,
)
from mmlavit.checks.masks import check_masks
from mmlavit.checks.model import build_model, check_checkpoints, check_step
from mmlavit.checks.report import Report
from mmlavit.checks.samples import check_data, empty_classes
from mmlavit.cli.amp import enable_amp
from mmlavit.cli.configs import load_config
from mmlavit.cli.launch import build_runner
from mmlavit.cli.parsers import ToolParser
from mmlavit.engine import DatasetCheckHook, PortableRunner
from mmlavit.engine.runner.resume import resume

SPLITS = ('train', 'val', 'test')


def build_parser() -> ToolParser:
    """Add the options of this tool to those of training."""
    parser = ToolParser('Find what is wrong with a config before training.')
    parser.add_argument(
        '--data', action='store_true', help='load every sample of the datasets, which takes a while'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='check for resuming, as tools/train.py takes it',
    )
    return parser


def check(args: Namespace, report: Report) -> None:
    """Check as the arguments say.

    Args:
        args: The parsed arguments.
        report: Takes the findings.
    """
    cfg = None
    with report.attempt('config'):
        cfg = load_config(args)
    if cfg is None:
        return
    loaders = [f'{split}_dataloader' for split in SPLITS if cfg.get(f'{split}_dataloader')]
    check_config(cfg, loaders, report)
    with report.attempt('work dir'):
        check_work_dir(cfg.work_dir)
        report.ok(f'work dir {cfg.work_dir}')
    if cfg.get('model') is None:
        return
    with report.attempt('--resume'):
        for warning in resume(cfg, args.resume):
            report.warn(f'--resume: {warning}')
    if args.amp and cfg.get('optim_wrapper'):
        with report.attempt('mixed precision'):
            enable_amp(cfg)
    init_default_scope(cfg.default_scope)
    model = build_model(with_preprocessor(cfg), report)
    if model is None:
        report.warn('without a model, nothing is compared with it, and no step is trained')
    else:
        report.ok(f'model {type(model).__name__}')
    check_checkpoints(cfg, model, report)
    with TemporaryDirectory() as folder:
        check_run(silent(cfg, folder), model, args.data, report)


def check_config(cfg: Config, loaders: Sequence[str], report: Report) -> None:
    """Check keys and paths.

    Args:
        cfg: The config.
        loaders: Names of its dataloaders.
        report: Takes the findings.
    """
    needed = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    problems = misspelt_keys(cfg)
    problems += [f'{cfg.filename}: {key} must be set' for key in needed if cfg.get(key) is None]
    # Test data is often the validation data, and is reported once.
    seen: list[Any] = []
    for loader in loaders:
        if cfg[loader] not in seen:
            problems += missing_paths(cfg, loader)
        problems += wrong_ann_files(cfg, loader)
        seen.append(cfg[loader])
    report.fail_each(problems)
    if not problems:
        report.ok(f'keys and paths of {cfg.filename}')


def with_preprocessor(cfg: Config) -> Any:
    """The model's config with the preprocessor that a runner puts into it.

    Args:
        cfg: The config.
    """
    config = deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    return config


def check_run(cfg: Config, model: nn.Module | None, every_sample: bool, report: Report) -> None:
    """Build what a run builds, compare data and model, and train one step.

    Args:
        cfg: The config, silent.
        model: Its model, ``None`` where that could not be built.
        every_sample: Whether all samples are loaded.
        report: Takes the findings.
    """
    runner = None
    if model is not None:
        with report.attempt('runner'):
            runner = build_runner(cfg)
            # What init_cfg names is loaded already, and a failure there is reported.
            cast(BaseModule, unwrapped(runner.model)).is_init = True
    heads = class_heads(model or nn.Module()).values()
    ignored: set[Any] = {head.ignore_index for head in heads if hasattr(head, 'ignore_index')} or {
        255
    }
    trainable = False
    seen: list[Any] = []
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader')
        if not loader or cfg.get(f'{split}_cfg') is None:
            continue
        name = f'{split}_dataloader'
        if missing_paths(cfg, name) or wrong_ann_files(cfg, name):
            continue
        known = loader.dataset in seen
        seen.append(loader.dataset)
        dataset = None
        with report.attempt(f'{split}_dataloader'), config_errors(cfg):
            if runner is not None:
                # with what else the loop has, such as the evaluator
                dataset = getattr(runner, f'{split}_loop').dataloader.dataset
                trainable |= split == 'train'
            elif not known:
                dataset = PortableRunner.build_dataloader(deepcopy(loader)).dataset
        if dataset is None and not known:
            # Errors of mmdet name a key, and not the entry that lacks it.
            with report.attempt(f'{split}_dataloader'):
                report.fail_each(finding.text for finding in unusable_entries(loader.dataset))
        if dataset is None or known:
            continue
        num_masks = masks_to_read(runner)
        check_fit(model or nn.Module(), dataset, ignored, num_masks, split, report)
        if every_sample:
            with report.attempt(f'{split}_dataloader'):
                check_data(
                    dataset,
                    model or nn.Module(),
                    ignored if num_masks else None,
                    report,
                    progress=sys.stderr,
                )
    if trainable:
        with report.attempt('one step of training'), config_errors(cfg):
            check_step(runner, report)


def masks_to_read(runner: Runner | None) -> int:
    """How many masks of a dataset are read before training.

    Args:
        runner: The runner, whose config may say; ``None`` where it could not be built.
    """
    hooks = runner.hooks if runner is not None else []
    own = [hook for hook in hooks if isinstance(hook, DatasetCheckHook)]
    return (own or [DatasetCheckHook()])[0].num_masks


def unwrapped(model: Any) -> nn.Module:
    """The model without its distributed wrapper."""
    return model.module if is_model_wrapper(model) else model


def silent(cfg: Config, folder: str) -> Config:
    """A config that does as the given one without leaving a trace.

    Args:
        cfg: The config.
        folder: A work dir to throw away.
    """
    cfg = deepcopy(cfg)
    cfg.update(work_dir=folder, log_level='ERROR', load_from=None, resume=False, launcher='none')
    if cfg.get('visualizer'):
        cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader')
        if loader:
            loader.update(num_workers=0, persistent_workers=False)
            loader.pop('prefetch_factor', None)
    return cfg


def check_fit(
    model: nn.Module,
    dataset: Any,
    ignored: set[int],
    num_masks: int,
    split: str,
    report: Report,
) -> None:
    """Compare a dataset with its files and with the model, as training does before it starts.

    Args:
        model: The model without wrappers.
        dataset: A dataset or a wrapper around some.
        ignored: Labels of masks that do not count.
        num_masks: How many masks to read.
        split: Which data it is.
        report: Takes the findings.
    """
    for base in base_datasets(dataset):
        failures, name = report.failures, dataset_name(base)
        for test in (
            lambda data: check_samples(data),
            lambda data: check_heads(model, data),
            lambda data: check_labels(model, data),
            lambda data: check_masks(data, ignored, num_masks),
        ):
            with report.attempt(name):
                test(base)
        empty = empty_classes(base)
        if empty:
            say = report.fail if split == 'train' else report.warn
            say(f'{name}: no image belongs to {", ".join(empty)}')
        if report.failures == failures:
            report.ok(f'{split}: {name}, {len(base)} samples')


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; return 1 where one of them is a failure, else 0.

    Args:
        argv: Arguments, ``sys.argv[1:]`` if None.
    """
    args = build_parser().parse_args(argv)
    report = Report(sys.stdout)
    with (
        safe_loading(trust=args.trust_checkpoint),
        redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')
        with report.attempt('check'):
            check(args, report)
    print(report.summary())
    return int(report.failures > 0)


if __name__ == '__main__':
    sys.exit(main())
