"""Arguments of each formula, and kernels compared with definitions."""

import math

import torch

from mmlavit import ops
from mmlavit.ops import Windows

# Relative errors, in the norm. Those of float32 are a few roundings.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def random(*shape, scale=1.0):
    return scale * torch.randn(shape, dtype=torch.float64)


def logits_of(windows, heads):
    n = windows.side**2
    return random(windows.batch * windows.rows * windows.cols, heads, n, n)


def less_attention(side, heads, width, batch, height, columns):
    """The formula, its activations, its parameters, and what is no tensor."""
    windows = Windows(side, batch, height, columns)
    v = random(batch, height, columns, heads * width)
    theta, psi = (random(side**2, side**2, scale=1 / side**2) for _ in range(2))
    return ops.less_attention, (v, logits_of(windows, heads)), (theta, psi), (windows,)


def vanilla_attention(
    side, heads, width, batch, height, columns, with_residual=False, keep_logits=True
):
    windows = Windows(side, batch, height, columns)
    qkv = random(batch, height, columns, 3 * heads * width)
    residual = logits_of(windows, heads) if with_residual else None
    return ops.vanilla_attention, (qkv,), (residual,), (windows, heads, keep_logits)


def attention_residual(side, heads, _, batch, height, columns, next_side=None):
    windows = Windows(side, batch, height, columns)
    next_windows = Windows(next_side or side, batch, (height + 1) // 2, (columns + 1) // 2)
    logits, kernel = logits_of(windows, heads), random(heads, 4, 4)
    return ops.attention_residual, (logits,), (kernel,), (windows, next_windows)


def conv_gelu(batch, height, columns, channels, with_bias=True):
    weight = random(channels, 1, 3, 3, scale=0.3)
    bias = random(channels) if with_bias else None
    return ops.conv_gelu, (random(batch, height, columns, channels),), (weight, bias), ()


def add_norm(batch, height, columns, channels, with_branch=True):
    x, branch = (random(batch, height, columns, channels) for _ in range(2))
    parameters = random(channels), random(channels)
    return ops.add_norm, (x, branch if with_branch else None), parameters, (1e-5,)


def diagonality(side, heads, _, batch, height, columns, form='hinge'):
    windows = Windows(side, batch, height, columns)
    return ops.diagonality, (logits_of(windows, heads),), (), (windows, form)


def typed(case, dtype=torch.float32):
    """The formula, its tensors in one type with gradients, and what is no tensor."""
    formula, activations, parameters, others = case
    tensors = (*activations, *parameters)
    return formula, [x if x is None else x.to(dtype).requires_grad_() for x in tensors], others


def check(formula, activations, parameters, others, dtype, device='cpu'):
    """Compare values and all gradients of a kernel with those of the definition in float64.

    Activations have the type, parameters are float32 as under autocast.
    """
    types = [dtype] * len(activations) + [torch.float32] * len(parameters)
    # on the grid of the narrow type, so that both sides start from the same numbers
    given = [None if x is None else x.to(dtype).double() for x in (*activations, *parameters)]
    wanted = _values_and_gradients('definition', formula, given, others, dtype)
    given = [None if x is None else x.to(device, t) for x, t in zip(given, types, strict=True)]
    found = _values_and_gradients('triton', formula, given, others, dtype)
    assert_near([x.double().cpu() for x in found], wanted, TOLERANCE[dtype])


def assert_near(found, wanted, tolerance):
    """Tensors in one order: of values, then of gradients."""
    for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
        assert x.shape == y.shape
        error = ((x - y).norm() / y.norm()).item()
        assert error <= tolerance, f'tensor {i} is off by {error:.1e}'


def _values_and_gradients(backend, formula, given, others, dtype):
    leaves = [x if x is None else x.detach().requires_grad_() for x in given]
    with ops.use(backend):
        results = tensors_in(formula(*leaves, *others))
    upstream = [waves(x.shape, i).to(dtype).to(x) for i, x in enumerate(results, start=1)]
    return [*results, *torch.autograd.grad(results, tensors_in(leaves), upstream)]


def tensors_in(results):
    """One tensor or several, without those that are not there."""
    results = [results] if isinstance(results, torch.Tensor) else results
    return [x for x in results if x is not None]


def waves(shape, start):
    """Numbers without a pattern, the same on every device."""
    count = torch.arange(start, start + math.prod(shape), dtype=torch.float64)
    return torch.sin(count**1.5).reshape(shape)
