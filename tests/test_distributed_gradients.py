"""Two processes with half a batch each compute the gradients of one process with the batch."""

import os
from collections.abc import Callable
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
from torch import Tensor

from mmlavit.cli.launch import build_runner

IMAGES = 4
STEPS = 2

Gradients = dict[str, Tensor]


def classifier(shapes: Path) -> Config:
    cfg = Config.fromfile(ROOT / 'configs/shapes/lavit-nano_shapes-cls.py')
    cfg.train_dataloader.collate_fn = dict(type='default_collate')
    cfg.train_dataloader.dataset.data_root = str(shapes / 'classification')
    return cfg


def segmentor(shapes: Path) -> Config:
    """UperNet with a norm that does not look at the batch, and without dropout."""
    cfg = Config.fromfile(ROOT / 'configs/shapes/upernet_lavit-nano_shapes.py')
    cfg.train_dataloader.dataset.data_root = str(shapes / 'ade20k')
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.update(norm_cfg=dict(type='GN', num_groups=8), dropout_ratio=0.0)
    return cfg


def prepare(
    build: Callable[[Path], Config], shapes: Path, world_size: int, **options: Any
) -> Config:
    """A config that takes two steps with the same weights on the same four images."""
    cfg = build(shapes)
    accumulate = options.get('accumulate', 1)
    cfg.launcher = 'none' if world_size == 1 else 'pytorch'
    cfg.env_cfg.dist_cfg.timeout = 60
    cfg.model.backbone.update(init_cfg=None, with_cp=options.get('with_cp', False))
    cfg.custom_hooks = [dict(type='mmlavit.DiagonalityLossHook')]
    cfg.optim_wrapper.update(
        optimizer=dict(type='SGD', lr=0.0), clip_grad=None, accumulative_counts=accumulate
    )
    cfg.param_scheduler = cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    loader = cfg.train_dataloader
    loader.update(
        batch_size=IMAGES // world_size // accumulate, num_workers=0, persistent_workers=False
    )
    loader.sampler.shuffle = False
    loader.dataset.indices = IMAGES
    pipeline = loader.dataset.pipeline
    pipeline[:] = [transform for transform in pipeline if transform['type'] != 'RandomFlip']
    length = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    cfg.train_cfg[length] = STEPS * (accumulate if length == 'max_iters' else 1)
    return cfg


class KeepGradients(Hook):
    """Copies the gradients that the optimizer is given, one dictionary a step."""

    def __init__(self) -> None:
        self.steps: list[Gradients] = []

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model

        def keep(*_: Any) -> None:
            self.steps.append({n: p.grad.clone() for n, p in model.named_parameters()})

        runner.optim_wrapper.optimizer.register_step_pre_hook(keep)


def gradients(cfg: Config, work_dir: Path) -> list[Gradients]:
    cfg.work_dir = str(work_dir)
    # so that rounding, 1e-5 of a gradient in single precision, hides nothing
    torch.set_default_dtype(torch.float64)
    try:
        runner, hook = build_runner(cfg), KeepGradients()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.backbone.register_forward_pre_hook(lambda _, args: (args[0].double(), *args[1:]))
        runner.register_hook(hook)
        runner.train()
    finally:
        torch.set_default_dtype(torch.float32)
    if cfg.launcher != 'none':
        assert not runner.model.find_unused_parameters
    return hook.steps


BUILDERS = {'classifier': classifier, 'segmentor': segmentor}
CASES: list[tuple[str, dict[str, Any]]] = [
    ('classifier', {'accumulate': 2}),
    ('segmentor', {}),
    ('segmentor', {'with_cp': True, 'accumulate': 2}),
]


def work(shapes: Path, out: Path) -> None:
    rank = int(os.environ['RANK'])
    for number, (name, options) in enumerate(CASES):
        steps = gradients(prepare(BUILDERS[name], shapes, 2, **options), out / 'work')
        torch.save(steps, out / f'{number} {rank}.pth')


@pytest.fixture(scope='module')
def of_two_processes(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('gradients')
    spawn(work, shapes, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize('name', BUILDERS)
def test_halves_of_a_batch_give_the_gradients_of_the_batch(
    name: str, shapes: Path, of_two_processes: Path, tmp_path: Path
) -> None:
    """With the diagonality loss, and without ``find_unused_parameters``.

    In the second step DDP complains of parameters that got no gradient in the first.
    """
    whole = gradients(prepare(BUILDERS[name], shapes, 1), tmp_path)[0]
    assert all(grad.any() for key, grad in whole.items() if key.endswith(('theta', 'psi')))
    for number in (i for i, (case, _) in enumerate(CASES) if case == name):
        for rank in (0, 1):
            steps = torch.load(of_two_processes / f'{number} {rank}.pth')
            assert len(steps) == STEPS
            for step in steps:
                assert step.keys() == whole.keys()
                for key, grad in step.items():
                    error = (grad - whole[key]).norm()
                    assert error < 1e-10 * whole[key].norm(), (CASES[number], key)
