"""Invariants of vanilla and less attention; test_properties.py has the definitions."""

import pytest
import torch
from attention_definition import attend_by_definition, valid_pairs

from mmlavit.models import LessAttention, VanillaAttention
from mmlavit.ops import Windows

DIM, HEADS, SIDE = 32, 4, 3
WINDOWS = pytest.mark.parametrize(
    'windows', [Windows(SIDE, 2, 6, 3), Windows(SIDE, 2, 4, 5), Windows(SIDE, 2, 1, 2)]
)


def less_attention(scale=0.1):
    layer = LessAttention(DIM, SIDE)
    torch.nn.init.normal_(layer.theta, std=scale)
    torch.nn.init.normal_(layer.psi, std=scale)
    return layer


def inputs(windows):
    """A map, and logits that are noise where a token is padding."""
    groups = windows.batch * windows.rows * windows.cols
    x = torch.randn(windows.batch, windows.height, windows.width, DIM, dtype=torch.float64)
    return x, torch.randn(groups, HEADS, SIDE**2, SIDE**2, dtype=torch.float64)


def test_identity_transforms_reproduce_the_previous_map_exactly():
    windows = Windows(SIDE, 1, 3, 6)
    x, logits = inputs(windows)
    _, reused = LessAttention(DIM, SIDE).double()(x, logits, windows)
    assert torch.equal(reused, logits)


@WINDOWS
@pytest.mark.parametrize('kind', ['LA', 'VA', 'guided VA', 'fused VA', 'guided fused VA'])
def test_value_and_gradients_are_those_of_the_definition(kind, windows):
    """The map and the logits of valid pairs, and what both hand back to all that they depend on."""
    layer = less_attention() if kind == 'LA' else VanillaAttention(DIM, HEADS, 'fused' not in kind)
    layer.double()
    x, start = inputs(windows)
    start = None if kind in ('VA', 'fused VA') else start
    leaves = [t.requires_grad_() for t in (x, start, *layer.parameters()) if t is not None]
    found = []
    out, logits = layer(x, start, windows)
    assert (logits is None) == ('fused' in kind)
    pairs = [] if logits is None else valid_pairs(logits, windows)
    expected, expected_pairs = attend_by_definition(layer, x, start, windows)
    for o, p in ((out, pairs), (expected, expected_pairs[: len(pairs)])):
        loss = o.sin().sum() + sum(part.cos().sum() for part in p)
        found.append([o, *p, *torch.autograd.grad(loss, leaves)])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
