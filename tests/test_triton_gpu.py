"""Kernels in Triton on a GPU, in the types in which models train there."""

import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import triton_cases as cases
from conftest import forget_runs
from small_configs import load

from mmlavit import ops
from mmlavit.cli.launch import build_runner
from mmlavit.models import LaViT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'),
]

GEOMETRIES = [
    (7, 2, 64, 2, 15, 20),
    (7, 3, 32, 1, 14, 14),
    (8, 1, 128, 1, 9, 8),
    (3, 2, 16, 2, 7, 5),
]
CASES = {
    'add_norm': lambda side, heads, width, *shape: cases.add_norm(*shape, heads * width),
    'add_norm alone': lambda side, heads, width, *shape: cases.add_norm(*shape, heads * width, 0),
    'attention_residual': cases.attention_residual,
    'diagonality': cases.diagonality,
    'less_attention': cases.less_attention,
    'vanilla_attention': cases.vanilla_attention,
    'vanilla_attention with a residual': lambda *x: cases.vanilla_attention(*x, True),
    'vanilla_attention without logits': lambda *x: cases.vanilla_attention(*x, True, False),
    'conv_gelu': lambda side, heads, width, *shape: cases.conv_gelu(*shape, heads * width),
}


CHECKS = [
    *product(CASES, GEOMETRIES, [torch.bfloat16, torch.float16]),
    *product(['attention_residual', 'diagonality', 'conv_gelu'], GEOMETRIES[:1], [torch.float32]),
]


@pytest.mark.parametrize(('name', 'geometry', 'dtype'), CHECKS, ids=str)
def test_kernel_against_float64(name, geometry, dtype):
    torch.manual_seed(0)
    cases.check(*CASES[name](*geometry), dtype, 'cuda')


def test_a_kernel_gives_the_same_bits_again():
    """No order of additions is left to chance, and no program writes what another one reads."""
    torch.manual_seed(0)
    formula, activations, parameters, others = cases.less_attention(7, 2, 64, 8, 40, 50)
    tensors = [x.to('cuda', torch.bfloat16).requires_grad_() for x in activations]
    tensors += [x.to('cuda', torch.float32).requires_grad_() for x in parameters]

    def gradients():
        loss = sum(x.float().square().sum() for x in formula(*tensors, *others))
        return torch.autograd.grad(loss, tensors)

    assert all(map(torch.equal, gradients(), gradients()))


def test_a_captured_graph_gives_what_the_backbone_gives():
    torch.manual_seed(0)
    model, images = LaViT('nano').cuda().eval(), torch.randn(2, 3, 90, 120, device='cuda')
    given = torch.zeros_like(images)
    # a cast that autocast has cached would not be part of the graph
    with torch.no_grad(), torch.autocast('cuda', torch.bfloat16, cache_enabled=False):
        wanted = model(images)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            maps = model(given)
    given.copy_(images)
    graph.replay()
    cases.assert_near(maps, wanted, cases.TOLERANCE[torch.bfloat16])


def losses(backend, shapes, work_dir, steps=20):
    """Of the Shapes classifier, in bfloat16 and with the diagonality loss."""
    forget_runs()
    cfg = load('configs/shapes/lavit-nano_shapes-cls.py', shapes, work_dir)
    cfg.train_dataloader.batch_size = cfg.train_dataloader.dataset.indices = 6
    cfg.train_cfg.max_epochs = steps  # of one step each
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = cfg.default_hooks.checkpoint = None
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale='dynamic')
    with ops.use(backend):
        runner = build_runner(cfg)
        runner.train()
    found, _ = runner.message_hub.get_scalar('train/loss').data
    assert len(found) == steps
    return torch.tensor(found)


def test_training_follows_the_definition(shapes, tmp_path):
    with_kernels, wanted = (
        losses(backend, shapes, tmp_path / backend) for backend in ('triton', 'definition')
    )
    forget_runs()
    assert wanted[-1] < 0.9 * wanted[0]
    # on a CPU, bfloat16 and float32 differ by 5e-4 in the first ten steps, and by 0.03 in the last
    torch.testing.assert_close(with_kernels[:10], wanted[:10], rtol=5e-3, atol=0)
    torch.testing.assert_close(with_kernels, wanted, rtol=0.1, atol=0)


@pytest.mark.slow
def test_no_threads_race():
    """Each kernel once, forward and backward, under NVIDIA's checker."""
    checker = shutil.which('compute-sanitizer')
    if checker is None:
        pytest.skip('compute-sanitizer is not installed')
    code = (
        'import torch, test_triton_gpu as t\n'
        'for case in t.CASES.values():\n'
        "    t.cases.check(*case(7, 1, 64, 1, 9, 8), torch.bfloat16, 'cuda')\n"
    )
    command = [checker, '--tool', 'racecheck', '--error-exitcode', '9', sys.executable, '-c', code]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    if 'Device not supported' in done.stdout:
        pytest.skip('compute-sanitizer does not support this machine')
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert 'RACECHECK SUMMARY: 0 hazards' in done.stdout
