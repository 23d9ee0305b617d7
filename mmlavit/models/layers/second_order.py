"""Derivatives of derivatives, for functions whose gradients are written by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiable_gradients(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Any],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Compute gradients by autograd, such that they can be differentiated again.

    A backward pass that builds a graph (``create_graph=True``) calls this in place of the fast way.

    Args:
        function: The plain definition.
        inputs: Its arguments, tensors and others, as the backward pass has kept them.
        grads: Gradients of its results, None where there is none.

    Returns:
        One gradient an input, None where none is needed.
    """
    needed = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    with torch.enable_grad():
        results = function(*inputs)
    pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None]
    found = torch.autograd.grad(
        [result for result, _ in pairs],
        needed,
        [grad for _, grad in pairs],
        create_graph=True,
        allow_unused=True,
    )
    by_input = iter(found)
    return tuple(
        next(by_input) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs
    )
