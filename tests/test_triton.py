"""Kernels in Triton, on a machine without a GPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton_cases as cases
from conftest import forget_runs
from torch._subclasses import FakeTensorMode

import mmlavit
from mmlavit import ops
from mmlavit.ops import backends
from mmlavit.ops import triton as kernels

TESTS = Path(__file__).parent
CASE = (3, 2, 16, 1, 4, 3)


def test_kernels_in_the_interpreter():
    """What Triton's interpreter computes; it is switched on before Triton is imported."""
    pytest.importorskip('triton')
    command = [sys.executable, '-m', 'pytest', '-q', '--noconftest', '-p', 'no:cacheprovider']
    result = subprocess.run(
        [*command, TESTS / 'triton_interpreted.py'],
        env={**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_package_works_without_its_kernels(tmp_path):
    package = tmp_path / 'mmlavit'
    shutil.copytree(Path(mmlavit.__file__).parent, package)
    shutil.rmtree(package / 'ops/triton')
    table = package / 'ops/backends.py'
    lines = table.read_text().replace("{'triton': triton}", '{}').splitlines()
    table.write_text('\n'.join(line for line in lines if line != 'from . import triton'))
    code = (
        'import torch; from mmlavit.models import LaViT; from mmlavit import ops;'
        "print(LaViT('nano')(torch.zeros(1, 3, 32, 32))[0].shape, ops.__file__)"
    )
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True)


@pytest.fixture
def fake_gpu():
    """Tensors that say they are on a GPU, and hold nothing."""
    with FakeTensorMode(), torch.device('cuda'):
        yield


def explain(case, dtype=torch.bfloat16):
    formula, tensors, others = cases.typed(case, dtype)
    return ops.explain(formula.__name__, *tensors, *others)


def test_what_runs_a_formula_is_told(fake_gpu, monkeypatch):
    pytest.importorskip('triton')
    assert explain(cases.less_attention(*CASE)).backend == 'triton'
    assert explain(cases.conv_gelu(1, 4, 3, 32), torch.float32).backend == 'triton'
    assert 'do not fit' in explain(cases.less_attention(*CASE), torch.float32).reason
    assert 'up to 64 tokens' in explain(cases.less_attention(9, 1, 16, 1, 9, 9)).reason
    monkeypatch.setattr(kernels, 'INSTALLED', False)
    choice = explain(cases.less_attention(*CASE))
    assert choice == ('definition', 'triton: Triton is not installed')


def test_the_log_says_once_what_runs_on_a_gpu(capsys):
    pytest.importorskip('triton')
    forget_runs()  # the next logger prints where pytest listens
    backends._log.cache_clear()
    formula, tensors, others = cases.typed(cases.conv_gelu(1, 4, 3, 32))
    formula(*tensors, *others)
    assert not capsys.readouterr().out  # on a CPU
    with FakeTensorMode():
        tensors = [torch.empty(x.shape, device='cuda') for x in tensors]
        for _ in range(2):
            formula(*tensors, *others)
            with ops.use('definition'):
                formula(*tensors, *others)
    lines = [x.partition(' - INFO - ')[2] for x in capsys.readouterr().out.splitlines()]
    assert lines == [
        'formulas of LaViT: triton (its kernel fits device and arguments)',
        "formulas of LaViT: definition (asked for by use('definition'))",
    ]
    forget_runs()
