"""Build the model of a config, load its checkpoints and train one step, as a run would."""

import resource
from copy import deepcopy
from math import isfinite
from typing import Any, cast

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmlavit.checkpoints import read_checkpoint
from mmlavit.errors import UserError
from mmlavit.models.key_differences import check_belongs, check_overlaps

from .build import find_refusal
from .report import Report

__all__ = ['build_model', 'check_checkpoints', 'check_step']

MB = 2**20


def build_model(config: ConfigDict, report: Report) -> nn.Module | None:
    """Build a model, leaving out refused arguments one by one so that all are reported.

    Args:
        config: The config of the model.
        report: Takes what is wrong.

    Returns:
        The model, ``None`` if anything was refused.
    """
    config, failures = deepcopy(config), report.failures
    while True:
        try:
            model = MODELS.build(deepcopy(config))
        except Exception as error:
            refusal = find_refusal(error, {'model': config})
            if refusal is None:
                report.fail(f'model: {type(error).__name__}: {error}')
                return None
            report.fail(refusal.text)
            if refusal.place is None or refusal.argument in (None, 'type'):
                return None
            node: Any = config
            for key in refusal.place[1:]:
                node = node[key]
            if refusal.argument not in node:
                return None
            del node[refusal.argument]
        else:
            return model if report.failures == failures else None


def check_checkpoints(cfg: Config, model: nn.Module | None, report: Report) -> None:
    """Load what ``init_cfg`` names, and compare what ``load_from`` names with the model.

    Args:
        cfg: The config; ``resume`` says whether ``load_from`` is resumed from.
        model: Its model, ``None`` where that could not be built.
        report: Takes the findings.
    """
    failures = report.failures
    if model is not None:
        with report.attempt('model.init_weights'):
            cast(BaseModule, model).init_weights()
    path = cfg.get('load_from')
    if path:
        with report.attempt(f'checkpoint {path!r}'):
            checkpoint = read_checkpoint(path)
            try:
                if model is not None:
                    check_belongs(checkpoint, model, path)
            except UserError as error:
                if cfg.get('resume'):
                    raise
                check_overlaps(checkpoint, cast(nn.Module, model), path)
                report.warn(f'{error}\nmmengine loads what fits, and the rest starts anew')
    if report.failures == failures:
        report.ok(f'checkpoints: load_from is {path}, init_cfg of the model is loaded')


def check_step(runner: Runner, report: Report) -> None:
    """Train one step on a batch of the training data.

    Args:
        runner: A runner whose train loop is built.
        report: Takes the figures.

    Raises:
        UserError: If a loss is not finite.
    """
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    runner.call_hook('before_run')
    runner.call_hook('before_train')
    batch = next(iter(runner.train_dataloader))
    runner.model.train()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = _peak_of_process()
    losses = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
    values = {name: float(value) for name, value in losses.items()}
    if cuda:
        memory = f'{torch.cuda.max_memory_allocated() / MB:.0f} MB of GPU memory at most'
    else:
        after = _peak_of_process()
        memory = f'{after:.0f} MB of memory at most, {after - before:.0f} MB more than before'
    wrong = [f'{name} is {value}' for name, value in values.items() if not isfinite(value)]
    if wrong:
        raise UserError(f'one step of training: {", ".join(wrong)}, expected a finite number')
    size = runner.train_dataloader.batch_size
    loss = f'loss {values["loss"]:.4g}'
    report.ok(f'forward, backward and optimizer step on a batch of {size}: {loss}, {memory}')


def _peak_of_process() -> float:
    """Largest memory of this process so far, in MB; Linux counts it in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
