"""Two processes with half a batch each compute the gradients of one process with the batch."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from distributed_jobs import spawn
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmlavit.cli.launch import build_runner

IMAGES = 4
STEPS = 2
CASES: dict[str, dict[str, Any]] = {
    'lavit-nano_shapes-cls': {},
    'upernet_lavit-nano_shapes': {'with_cp': True, 'accumulate': 2},
}

Gradients = dict[str, Tensor]


def read(name: str, shapes: Path) -> Config:
    """A config of Shapes whose loss is the mean of the losses of its images."""
    cfg = Config.fromfile(ROOT / f'configs/shapes/{name}.py')
    if name.endswith('cls'):
        cfg.train_dataloader.collate_fn = dict(type='default_collate')
        cfg.train_dataloader.dataset.data_root = str(shapes / 'classification')
    else:
        cfg.train_dataloader.dataset.data_root = str(shapes / 'ade20k')
        for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
            head.update(norm_cfg=dict(type='GN', num_groups=8), dropout_ratio=0.0)
    return cfg


def prepare(cfg: Config, world_size: int, with_cp: bool = False, accumulate: int = 1) -> Config:
    """A config that takes two steps with the same weights on the same four images."""
    cfg.launcher = 'none' if world_size == 1 else 'pytorch'
    cfg.env_cfg.dist_cfg.timeout = 60
    cfg.model.backbone.update(init_cfg=None, with_cp=with_cp)
    cfg.custom_hooks = [dict(type='mmlavit.DiagonalityLossHook')]
    cfg.optim_wrapper.update(
        optimizer=dict(type='SGD', lr=0.0), clip_grad=None, accumulative_counts=accumulate
    )
    cfg.param_scheduler = cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    loader, batch = cfg.train_dataloader, IMAGES // world_size // accumulate
    loader.update(batch_size=batch, num_workers=0, persistent_workers=False)
    loader.sampler.shuffle = False
    loader.dataset.indices = IMAGES
    pipeline = loader.dataset.pipeline
    pipeline[:] = [transform for transform in pipeline if transform['type'] != 'RandomFlip']
    length = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    cfg.train_cfg[length] = STEPS * (accumulate if length == 'max_iters' else 1)
    return cfg


def unwrapped(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


class KeepGradients(Hook):
    """Copies the gradients that the optimizer is given, one dictionary a step."""

    def __init__(self) -> None:
        self.steps: list[Gradients] = []

    def before_train(self, runner: Runner) -> None:
        def keep(*_: Any) -> None:
            parameters = unwrapped(runner).named_parameters()
            self.steps.append({name: p.grad.clone() for name, p in parameters})

        runner.optim_wrapper.optimizer.register_step_pre_hook(keep)


def gradients(cfg: Config, work_dir: Path) -> list[Gradients]:
    cfg.work_dir = str(work_dir)
    # so that rounding, 1e-5 of a gradient in single precision, hides nothing
    torch.set_default_dtype(torch.float64)
    try:
        runner, hook = build_runner(cfg), KeepGradients()
        unwrapped(runner).backbone.register_forward_pre_hook(
            lambda _, args: (args[0].double(), *args[1:])
        )
        runner.register_hook(hook)
        runner.train()
    finally:
        torch.set_default_dtype(torch.float32)
    if cfg.launcher != 'none':
        assert not runner.model.find_unused_parameters
    return hook.steps


def work(shapes: Path, out: Path) -> None:
    for name, options in CASES.items():
        steps = gradients(prepare(read(name, shapes), 2, **options), out / 'work')
        torch.save(steps, out / f'{name} {os.environ["RANK"]}.pth')


@pytest.mark.slow
def test_halves_of_a_batch_give_the_gradients_of_the_batch(shapes: Path, tmp_path: Path) -> None:
    """With the diagonality loss, and without ``find_unused_parameters``.

    In the second step DDP complains of parameters that got no gradient in the first.
    """
    spawn(work, shapes, tmp_path)
    for name in CASES:
        whole = gradients(prepare(read(name, shapes), 1), tmp_path / 'whole')[0]
        assert all(grad.any() for key, grad in whole.items() if key.endswith(('theta', 'psi')))
        for rank in (0, 1):
            steps = torch.load(tmp_path / f'{name} {rank}.pth')
            assert len(steps) == STEPS
            for step in steps:
                assert step.keys() == whole.keys()
                for key, grad in step.items():
                    error = (grad - whole[key]).norm()
                    assert error < 1e-10 * whole[key].norm(), (name, rank, key)
