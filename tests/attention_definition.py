"""Both kinds of attention as the paper defines them, window by window on the tokens of the map."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmlavit.models import LessAttention, VanillaAttention
from mmlavit.ops import Windows


class Window(NamedTuple):
    """The part of a map that lies in one window."""

    image: int
    rows: slice
    cols: slice
    valid: list[int]  # numbers of its tokens among the N of a whole window


def windows_of(windows: Windows) -> Iterator[Window]:
    """All windows, in the order of the groups."""
    n = windows.side
    for image in range(windows.batch):
        for top in range(0, windows.height, n):
            for left in range(0, windows.width, n):
                bottom, right = min(top + n, windows.height), min(left + n, windows.width)
                inside = [i * n + j for i in range(bottom - top) for j in range(right - left)]
                yield Window(image, slice(top, bottom), slice(left, right), inside)


def valid_pairs(logits: Tensor, windows: Windows) -> list[Tensor]:
    """Of each group the logits between tokens on the map, ``(heads, n, n)``."""
    return [
        group[:, window.valid][:, :, window.valid]
        for group, window in zip(logits, windows_of(windows), strict=True)
    ]


def attend_by_definition(
    layer: VanillaAttention | LessAttention, x: Tensor, logits: Tensor | None, windows: Windows
) -> tuple[Tensor, list[Tensor]]:
    """The layer's map, and its logits as :func:`valid_pairs` gives them."""
    out, new = torch.zeros_like(x), []
    for number, (image, rows, cols, valid) in enumerate(windows_of(windows)):
        tokens = x[image, rows, cols]
        flat = tokens.flatten(0, 1)  # (n, dim)
        given = None if logits is None else logits[number][:, valid][:, :, valid]
        if isinstance(layer, LessAttention):
            psi, theta = (
                (torch.eye(len(t), dtype=t.dtype) + t)[valid][:, valid]
                for t in (layer.psi, layer.theta)
            )
            pairs, values, heads = psi @ given @ theta.T, layer.v(flat), len(given)
        else:
            q, k, values = layer.qkv(flat).chunk(3, -1)
            heads = layer.num_heads
            q, k = (t.unflatten(-1, (heads, -1)) for t in (q, k))  # (n, heads, d)
            pairs = torch.einsum('ihd,jhd->hij', q, k) / q.shape[-1] ** 0.5
            pairs = pairs if given is None else pairs + given
        parts = values.chunk(heads, -1)
        attended = [p.softmax(-1) @ v for p, v in zip(pairs, parts, strict=True)]
        out[image, rows, cols] = layer.proj(torch.cat(attended, -1)).view(tokens.shape)
        new.append(pairs)
    return out, new
