"""Prediction on a CPU in pieces whose widest map stays in the cache."""

from collections.abc import Callable

import torch
from torch import Tensor

# Bytes of the widest map of a piece.
BAND_BYTES = 2**23


def in_bands(
    reach: Callable[[Tensor], Tensor], finish: Callable[[Tensor], Tensor], x: Tensor, channels: int
) -> Tensor:
    """Compute ``finish(reach(x))``, in prediction on a CPU by bands of rows or by a few images.

    Args:
        reach: What a token needs its eight neighbours for, ``(B, h, w, C) -> (B, h, w, channels)``.
        finish: What it needs none for, ``(B, h, w, channels) -> (B, h, w, C)``.
        x: Map ``(B, h, w, C)``.
        channels: Of the widest map in between.
    """
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if x.device.type != 'cpu' or torch.is_grad_enabled() or tracing:
        return finish(reach(x))
    batch, height, width, _ = x.shape
    rows = max(BAND_BYTES // (width * channels * x.element_size()), 1)
    images = max(rows // height, 1)
    out = torch.empty_like(x)
    for i in range(0, batch, images):
        for top in range(0, height, rows):
            # one row more on either side, which the neighbours of the band's own rows lie in
            start = max(top - 1, 0)
            band = reach(x[i : i + images, start : top + rows + 1])
            own = slice(top - start, top - start + rows)
            out[i : i + images, top : top + rows] = finish(band[:, own])
    return out
