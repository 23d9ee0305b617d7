"""Kernels in Triton beside the definitions of the same names.

Everything that keeps a formula from its kernel is said here. Triton is imported with the first
kernel that runs.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..windows import Windows

INSTALLED = find_spec('triton') is not None
# Triton then runs kernels in Python on tensors of a CPU: slowly, for tests.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
MAX_TOKENS = 64  # of a window: its logits stay in registers
MAX_CHANNELS = 1024  # of a token that is normalized: it stays in registers too
HEAD_WIDTHS = (16, 32, 64, 128)  # the widths of matrices that a multiprocessor multiplies


def why_not(asked_for: bool, operator: str, *args: Any) -> str | None:
    """Why there is no kernel for a formula and its arguments; None if there is."""
    x = args[0]
    return _why_not_here(x.device, asked_for) or _why_not_these(x) or CHECKS[operator](*args)


def run(operator: str, *args: Any) -> Any:
    """Compute a formula."""
    from . import operators

    return getattr(operators, operator)(*args)


def _why_not_here(device: torch.device, asked_for: bool) -> str | None:
    if device.type != 'cuda' and not (INTERPRETED and asked_for):
        return f'the tensors are on {device.type}'
    if not INSTALLED:
        return 'Triton is not installed'
    # without a GPU, tensors on one are fake, and nothing is computed
    if device.type == 'cuda' and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(device)
        if gpu.major < 8:
            return f'the GPU has compute capability {gpu.major}.{gpu.minor}, less than 8.0'
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return 'an exported model holds operators of torch only'
    if torch._C._are_functorch_transforms_active():
        return 'torch.func transforms operators of torch only'
    return None


def _why_not_these(x: Tensor) -> str | None:
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f'kernels compute in float16, bfloat16 and float32, not in {x.dtype}'
    if 0 in x.shape:
        return 'there is nothing to compute'
    return None


def _less_attention(
    v: Tensor, logits: Tensor, theta: Tensor, psi: Tensor, windows: Windows
) -> str | None:
    n = windows.side**2
    heads = logits.shape[1]
    if not (_is_map(v, windows) and _are_logits(logits, windows, heads)):
        return MISFIT
    if theta.shape != (n, n) or psi.shape != (n, n):
        return MISFIT
    return _why_not_many(windows.side**2) or _why_not_wide(v, v.shape[-1], heads)


def _vanilla_attention(
    qkv: Tensor, residual: Tensor | None, windows: Windows, heads: int, keep_logits: bool
) -> str | None:
    if not _is_map(qkv, windows):
        return MISFIT
    if residual is not None and not _are_logits(residual, windows, heads):
        return MISFIT
    return _why_not_many(windows.side**2) or _why_not_wide(qkv, qkv.shape[-1] // 3, heads)


def _attention_residual(
    logits: Tensor, kernel: Tensor, windows: Windows, next_windows: Windows
) -> str | None:
    heads = len(kernel)
    halves = (windows.batch, (windows.height + 1) // 2, (windows.width + 1) // 2)
    if next_windows[1:] != halves or kernel.shape != (heads, 4, 4):
        return MISFIT
    if not _are_logits(logits, windows, heads):
        return MISFIT
    return _why_not_many(max(windows.side, next_windows.side) ** 2)


def _conv_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    channels = x.shape[-1]
    if x.dim() != 4 or weight.shape != (channels, 1, 3, 3):
        return MISFIT
    return None if bias is None or bias.shape == (channels,) else MISFIT


def _add_norm(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> str | None:
    channels = x.shape[-1]
    if branch is not None and branch.shape != x.shape:
        return MISFIT
    if weight.shape != (channels,) or bias.shape != (channels,):
        return MISFIT
    if channels > MAX_CHANNELS:
        return f'kernels hold tokens of up to {MAX_CHANNELS} channels, not of {channels}'
    return None


def _diagonality(logits: Tensor, windows: Windows | None, form: str) -> str | None:
    if form != 'hinge':
        return f'the kernel computes the form hinge, not {form}'
    groups, heads, n, m = logits.shape
    if n != m or (windows is not None and not _are_logits(logits, windows, heads)):
        return MISFIT
    return _why_not_many(n)


MISFIT = 'the shapes of the arguments do not fit together'
CHECKS: dict[str, Callable[..., str | None]] = {
    'add_norm': _add_norm,
    'attention_residual': _attention_residual,
    'conv_gelu': _conv_gelu,
    'diagonality': _diagonality,
    'less_attention': _less_attention,
    'vanilla_attention': _vanilla_attention,
}


def _is_map(x: Tensor, windows: Windows) -> bool:
    return x.dim() == 4 and x.shape[:3] == windows[1:]


def _are_logits(logits: Tensor, windows: Windows, heads: int) -> bool:
    groups, n = windows.batch * windows.rows * windows.cols, windows.side**2
    return logits.shape == (groups, heads, n, n)


def _why_not_many(tokens: int) -> str | None:
    if tokens > MAX_TOKENS:
        return f'kernels hold windows of up to {MAX_TOKENS} tokens, not of {tokens}'
    return None


def _why_not_wide(x: Tensor, channels: int, heads: int) -> str | None:
    if x.dtype == torch.float32 and not INTERPRETED:
        return 'products of float32 matrices do not fit into the registers of a GPU'
    width = channels / heads
    if width not in HEAD_WIDTHS:
        return f'kernels hold heads of 16, 32, 64 or 128 channels, not of {width:g}'
    return None
