"""Count the kernels that a GPU launches for a LaViT and its all-VA baseline, and what they move.

Nothing is computed and no GPU is needed: tensors without data pass through torch's dispatcher as
they would on CUDA, under autocast, by the definition of each formula in plain PyTorch and with the
kernels that mmlavit takes by itself (``mmlavit.ops``). Examples::

    python benchmarks/kernels.py --json kernels.json
    python benchmarks/kernels.py --arch base --size 512x512 --batch 16

An operator that is no view counts as one kernel (some of torch's launch two or three), and moves
what it reads and what it writes. Training is a forward and a backward pass without an optimizer,
with the diagonality-preserving (DP) loss and without.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from backward import backward
from common import (
    DTYPES,
    Row,
    make_parser,
    positive,
    print_table,
    read_options,
    show_size,
    size_of,
    write_json,
)
from mmengine.logging import MMLogger
from recipe import TrainingLoss
from subjects import BASELINE, LAVIT
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmlavit import ops
from mmlavit.models import LaViT
from mmlavit.models.layers import LessAttention
from mmlavit.ops.backends import Backend

aten = torch.ops.aten
BACKENDS: tuple[Backend, ...] = ('definition', 'auto')
# Operators that launch nothing though they are no views.
FREE = (
    aten._unsafe_view, aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty,
    aten.new_empty_strided,
)  # fmt: skip


class KernelCounter(TorchDispatchMode):
    """Counts what torch dispatches.

    Attributes:
        kernels: How often, by operator.
        bytes: What they have read and written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count it if it launches a kernel."""
        result = func(*args, **(kwargs or {}))
        written = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if written and not func.is_view and func.overloadpacket not in FREE:
            read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self.kernels[str(func)] += 1
            self.bytes += sum(map(_bytes, read + written))
        return result


class FusedAttention(TorchFunctionMode):
    """Take the attention kernels that torch takes on a GPU: without one it takes plain products."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function."""
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        bias, training = kwargs['attn_mask'], torch.is_grad_enabled()
        if bias is not None:  # the kernel with a bias wants its rows aligned
            bias = F.pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]]
        return aten._scaled_dot_product_efficient_attention(*args, bias, training)[0]


def count(step: Callable[[], object]) -> KernelCounter:
    """Count the kernels of a call."""
    with KernelCounter() as counter, FusedAttention():
        step()
    return counter


@contextmanager
def autocast_on_cuda(dtype: torch.dtype) -> Iterator[None]:
    """Enter mixed precision; ``torch.autocast`` itself does nothing where there is no GPU."""
    torch.set_autocast_dtype('cuda', dtype)
    torch.set_autocast_enabled('cuda', dtype is not torch.float32)
    try:
        yield
    finally:
        torch.set_autocast_enabled('cuda', False)
        torch.clear_autocast_cache()


def count_model(model: LaViT, images: Tensor, dtype: torch.dtype) -> dict[str, KernelCounter]:
    """Count the passes of a model on a GPU, or of a fake one, by the name of the pass."""

    def predict() -> None:
        with torch.no_grad(), autocast_on_cuda(dtype):
            model(images)

    def train(loss: TrainingLoss) -> None:
        with autocast_on_cuda(dtype):
            value = loss(images)
        backward(value)

    model.eval()
    found = {'forward': count(predict)}
    found['training, no DP loss'] = count(partial(train, TrainingLoss(model, False).train()))
    if any(isinstance(module, LessAttention) for module in model.modules()):
        found['training'] = count(partial(train, TrainingLoss(model, True).train()))
    return found


def _bytes(x: Tensor) -> int:
    """What reading or writing a tensor moves; what is expanded is read once."""
    sides = (side for side, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return torch.Size(sides).numel() * x.element_size()


def fake_model(**options: Any) -> LaViT:
    """Build a LaViT on a GPU that need not exist, within a ``FakeTensorMode``."""
    with torch.utils._python_dispatch._disable_current_modes():
        model = LaViT(**options)
    return model._apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device='cuda'))


def main(argv: Sequence[str] | None = None) -> None:
    """Count, print, and keep what was asked for."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel('ERROR')  # what computes the formulas: see the table
    rows: list[Row] = []
    with FakeTensorMode():
        images = torch.empty(args.batch, 3, *args.size, device='cuda')
        for backend, less_attention in product(BACKENDS, (True, False)):
            model = fake_model(arch=args.arch, less_attention=less_attention)
            with ops.use(backend):
                counted = count_model(model, images, DTYPES[args.dtype])
            name = LAVIT if less_attention else BASELINE
            rows += [
                dict(model=name, backend=backend, mode=mode, size=show_size(args.size),
                     batch=args.batch, kernels=found.kernels.total(), bytes=found.bytes,
                     operators=dict(found.kernels.most_common()))
                for mode, found in counted.items()
            ]  # fmt: skip
    keys = ('model', 'backend', 'mode', 'kernels')
    lines = [[*(str(row[key]) for key in keys), f'{row["bytes"] / 1e9:.2f}'] for row in rows]
    title = f'Counted, not measured: {show_size(args.size)}, batch {args.batch}, {args.dtype}'
    print_table(title, ['model', 'backend', 'pass', 'kernels', 'GB moved'], lines, args)
    write_json(args, rows)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, 'bf16')
    parser.add_argument(
        '--size', type=size_of, default=(224, 224), metavar='HxW', help='of the images (224x224)'
    )
    parser.add_argument('--batch', type=positive, default=64, metavar='N', help='%(default)s')
    return read_options(parser, argv)


if __name__ == '__main__':
    main()
