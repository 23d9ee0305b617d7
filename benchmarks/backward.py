"""A backward pass that needs no GPU for tensors without data that claim to be on one."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction


def backward(loss: Tensor) -> None:
    """Compute all gradients, as ``loss.backward()`` does.

    Torch's own engine asks the driver of the GPU for streams, even for tensors without data.
    """
    waiting: Counter[Any] = Counter()  # edges from nodes that have not run yet, by where they lead
    nodes: list[Any] = [loss.grad_fn]
    for node in nodes:
        for after, _ in _edges(node):
            nodes += [after] if after not in waiting else []
            waiting[after] += 1
    gradients: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready: list[Any] = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            mine = gradients.pop(node, {})
            if not node.next_functions:  # a parameter, which keeps a gradient that is contiguous
                for gradient in mine.values():
                    if not gradient.is_contiguous():
                        torch.empty_like(node.variable).copy_(gradient)
                continue
            outputs = _run(node, mine) if mine else [None] * len(_edges(node))
            for (after, i), output in zip(_edges(node), outputs, strict=True):
                if output is not None:
                    place, sums = after._input_metadata[i], gradients.setdefault(after, {})
                    if tuple(output.shape) != tuple(place.shape):
                        output = output.sum_to_size(place.shape)
                    output = output.to(place.dtype)
                    sums[i] = sums[i] + output if i in sums else output
                waiting[after] -= 1
                ready += [] if waiting[after] else [after]


def _edges(node: Any) -> list[tuple[Any, int]]:
    """The nodes that a node's gradients go to, and which of their inputs each is."""
    return [edge for edge in node.next_functions if edge[0] is not None]


def _run(node: Any, gradients: dict[int, Tensor]) -> list[Tensor | None]:
    """Compute the gradients of a node, one an edge."""
    inputs = [gradients.get(i) for i in range(len(node._input_metadata))]
    run, wanted = node, [after is not None for after, _ in node.next_functions]
    if isinstance(node, BackwardCFunction):  # written in Python: one an argument, tensor or not
        run, wanted = node.apply, list(node.needs_input_grad)
    outputs = run(*inputs)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [output for output, want in zip(outputs, wanted, strict=True) if want]
