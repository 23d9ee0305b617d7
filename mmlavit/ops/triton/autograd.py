"""Gradients of operators that kernels compute."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor


def differentiable(
    operator: Any, gradients: Callable[..., Sequence[Any]], definition: Callable[..., Any]
) -> None:
    """Give an operator its gradients by a kernel, and those of the gradients by the definition.

    Args:
        operator: Made by ``torch.library.custom_op``; its tensors come first.
        gradients: From the gradients of its results, None where there are none, and its arguments
            to the gradients of its tensors.
        definition: The same function in operators of torch.
    """

    def tensors_of(inputs: Sequence[Any]) -> list[Tensor | None]:
        return list(takewhile(lambda x: x is None or isinstance(x, Tensor), inputs))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = tensors_of(inputs)
        ctx.save_for_backward(*tensors)
        ctx.others = inputs[len(tensors) :]
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        compute = differentiate if torch.is_grad_enabled() else gradients
        found = compute(*grads, *ctx.saved_tensors, *ctx.others)
        return *found, *[None] * len(ctx.others)

    def differentiate(*args: Any) -> list[Tensor | None]:
        grads, inputs = args[:num_results], list(args[num_results:])
        # views: where one tensor was made from another, its gradient must not reach that one
        leaves = {i: x.view_as(x) for i, x in enumerate(inputs) if isinstance(x, Tensor)}
        results = definition(*(leaves.get(i, x) for i, x in enumerate(inputs)))
        results = [results] if isinstance(results, Tensor) else results
        pairs = [
            (x, g) for x, g in zip(results, grads, strict=True) if x is not None and g is not None
        ]
        wanted = [i for i, x in leaves.items() if x.requires_grad]
        found = torch.autograd.grad(
            [x for x, _ in pairs],
            [leaves[i] for i in wanted],
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
        by_place = dict(zip(wanted, found, strict=True))
        return [by_place.get(i) for i in range(len(tensors_of(inputs)))]

    num_results = len(operator._opoverload._schema.returns)
    operator.register_autograd(backward, setup_context=setup_context)
