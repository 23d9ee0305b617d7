"""Tiles: temporaries that stay in a CPU's cache (docs/performance.md)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Bytes a thread that a tile's widest temporary may take (docs/performance.md).
TILE_BYTES = 2**22
# Bytes in all: well below the 32 MiB from which glibc maps a tensor anew, however many threads.
MOST_TILE_BYTES = 2**24


def is_streamed(x: Tensor) -> bool:
    """Whether to work in tiles: only on a CPU, in a model that runs as it is."""
    return x.device.type == 'cpu' and is_eager()


def is_eager() -> bool:
    """Whether the model runs as it is: not compiled, exported or transformed by ``torch.func``."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return not (
        torch.compiler.is_compiling() or tracing or torch._C._are_functorch_transforms_active()
    )


def is_bare(*modules: nn.Module) -> bool:
    """Whether nobody hooked into the modules, so that their parts may run without or piecemeal."""
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What a linear layer computes ``x`` in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def tiles(x: Tensor, channels: int, step: int) -> Iterator[tuple[slice, slice]]:
    """Divide maps into whole images or, where one is too large, into rows of one.

    Args:
        x: Maps of shape ``(B, h, w, C)``.
        channels: Channels of the widest temporary that a tile needs.
        step: Tiles start at multiples of that many rows.

    Yields:
        Slices of the images and of the rows of a tile.
    """
    batch, height, width, _ = x.shape
    budget = min(TILE_BYTES * torch.get_num_threads(), MOST_TILE_BYTES)
    rows = budget // (width * channels * x.element_size())
    images = max(rows // height, 1)
    rows = max(rows // step, 1) * step
    for first in range(0, batch, images):
        for top in range(0, height, rows):
            yield slice(first, min(first + images, batch)), slice(top, min(top + rows, height))
