"""Kernels compiled for an H100 as they are launched, which needs no GPU."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton_cases as cases

triton = pytest.importorskip('triton')


class H100:
    """What Triton asks a GPU for before it compiles."""

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget('cuda', 90, 32)

    def get_current_device(self):
        return -1  # a number that no GPU of this machine has: kernels are kept by it

    def get_current_stream(self, device):
        return -1


@pytest.fixture
def compiled(monkeypatch):
    """Kernels that were compiled instead of launched."""
    kernels = []
    run = triton.runtime.jit.JITFunction.run

    def compile_only(self, *args, warmup, **kwargs):
        kernels.append(run(self, *args, warmup=True, **kwargs))

    monkeypatch.setattr(triton.runtime.jit.JITFunction, 'run', compile_only)
    triton.runtime.driver.set_active(H100())
    yield kernels
    triton.runtime.driver.set_active(None)


@pytest.mark.parametrize(
    'case',
    [
        cases.less_attention(7, 2, 64, 1, 9, 8),
        cases.less_attention(7, 2, 64, 1, 7, 7),
        cases.attention_residual(7, 2, 64, 1, 9, 8),
        cases.add_norm(1, 9, 10, 320),
        cases.add_norm(1, 9, 10, 1024),
        cases.add_norm(1, 9, 10, 64, with_branch=False),
        cases.conv_gelu(1, 9, 10, 256),
        cases.diagonality(7, 2, 64, 1, 9, 8),
        cases.vanilla_attention(7, 2, 64, 1, 9, 8, with_residual=False),
        cases.vanilla_attention(7, 2, 64, 1, 9, 8, with_residual=True),
    ],
    ids=lambda case: case[0].__name__,
)
def test_registers_suffice(case, compiled, tmp_path):
    from mmlavit.ops.triton import operators

    formula, activations, parameters, others = case
    activations = [None if x is None else x.bfloat16().requires_grad_() for x in activations]
    parameters = [None if x is None else x.float().requires_grad_() for x in parameters]
    tensors = [x for x in (*activations, *parameters) if x is not None]
    results = getattr(operators, formula.__name__)(*activations, *parameters, *others)
    results = [results] if isinstance(results, torch.Tensor) else results
    results = [x for x in results if x is not None]
    # gradients with the rows of logits, as the next layer gives them
    torch.autograd.grad(results, tensors, [x.detach() for x in results])
    assert len(compiled) >= 2  # forward and backward
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    cubin = tmp_path / 'kernel.cubin'
    for kernel in compiled:
        cubin.write_bytes(kernel.asm['cubin'])
        usage = subprocess.run([tool, '-res-usage', cubin], capture_output=True, text=True).stdout
        stack = int(re.search(r'STACK:(\d+)', usage)[1])
        assert stack == 0, f'{kernel.metadata.name} spills {stack} bytes'
        assert kernel.metadata.shared <= 227 * 1024
