"""Run a tool with the bfloat16 products of a processor that has them, on one that has not.

Such hardware multiplies bfloat16 numbers exactly, adds in float32, and rounds the sum to bfloat16.
Without it, torch's kernels do the same many times slower than in float32. Here the factors are
widened to float32, in which their products are exact, and the result is rounded: the same numbers
but for the order of the sums, at nearly the speed of float32. Fused attention rounds its weights
nowhere in between. Example:
`python benchmarks/bfloat16_products.py tools/train.py lavit-nano_shapes-cls.py --amp`.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
PRODUCTS = (
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.convolution,
    aten.convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
)


class BFloat16Products(TorchDispatchMode):
    """Compute matrix products, convolutions and attention of bfloat16 tensors in float32."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operator, in float32 where it is a product of bfloat16 tensors."""
        kwargs = dict(kwargs or {})
        operator = func.overloadpacket
        fused = operator is aten._scaled_dot_product_flash_attention_for_cpu
        if not ((fused or operator in PRODUCTS) and _has_bfloat16(args)):
            return func(*args, **kwargs)
        out = kwargs.pop('out', None)
        wide_args, wide_kwargs = tree_map_only(Tensor, _widen, (args, kwargs))
        result = operator(*wide_args, **wide_kwargs)
        if fused:
            attention, normalizer = result  # the logarithms stay float32
            return attention.bfloat16(), normalizer
        result = tree_map_only(Tensor, Tensor.bfloat16, result)
        return result if out is None else out.copy_(result)


def _has_bfloat16(args: tuple[Any, ...]) -> bool:
    return any(isinstance(a, Tensor) and a.dtype is torch.bfloat16 for a in args)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype is torch.bfloat16 else x


def main() -> None:
    """Run the file that the command line names, with the arguments behind it."""
    if len(sys.argv) < 2:
        sys.exit(f'usage: {sys.argv[0]} FILE [ARGUMENT ...]')
    del sys.argv[0]
    if not Path(sys.argv[0]).is_file():
        sys.exit(f'{sys.argv[0]}: no such file; expected a tool to run')
    with BFloat16Products():
        runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
