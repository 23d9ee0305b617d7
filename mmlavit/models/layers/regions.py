"""Windows that fit the map: whole ones, and narrower ones at its lower and right border.

A padded token neither attends nor is attended to, so a window that reaches over the border may as
well hold the tokens only that the map has. That saves padding, masks and the arithmetic on both.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .padding import ceil_divide

# of whole windows, or one tensor a region
Scores = Tensor | list[Tensor] | None


class Region(NamedTuple):
    """A part of a map that windows of one shape cover without a rest."""

    rows: slice
    cols: slice
    window: tuple[int, int]  # rows and columns of tokens


def regions(size: Sequence[int], window: int) -> list[Region]:
    """Divide a map into at most four regions: whole windows, right border, lower border, corner.

    Args:
        size: ``(h, w)`` of the map.
        window: Side of a whole window in tokens.
    """
    rows, cols = (_bands(side, window) for side in size)
    return [Region(r, c, (a, b)) for r, a in rows for c, b in cols]


def _bands(side: int, window: int) -> list[tuple[slice, int]]:
    rest = side % window
    bands = [(slice(0, side - rest), window), (slice(side - rest, side), rest)]
    return [(band, width) for band, width in bands if band.start < band.stop]


class MapLayout(NamedTuple):
    """The windows and heads of regions, in maps ``(B, h, w, parts * heads * d)``."""

    shape: Sequence[int]
    regions: Sequence[Region]
    heads: int
    parts: int = 1  # maps that lie side by side in the channels

    def empty(self, like: Tensor) -> Tensor:
        """A map to be filled."""
        return like.new_empty(tuple(self.shape))

    def views(self, x: Tensor) -> Iterator[Tensor]:
        """``(B, rows, cols, heads, a, b, d)`` for each region and part; together, all of ``x``."""
        for rows, cols, (a, b) in self.regions:
            tokens = x[:, rows, cols]
            batch, h, w, _ = tokens.shape
            # (B, rows, a, cols, b, parts, heads, d) -> (parts, B, rows, cols, heads, a, b, d)
            tokens = tokens.view(batch, h // a, a, w // b, b, self.parts, self.heads, -1)
            yield from tokens.permute(5, 0, 1, 3, 6, 2, 4, 7).unbind()


class PairLayout(NamedTuple):
    """The pairs of regions, in logits of whole windows, ``(B * rows * cols, heads, N, N)``."""

    shape: Sequence[int]
    regions: Sequence[Region]
    size: tuple[int, int, int]  # images, rows and columns of whole windows
    window: int

    def empty(self, like: Tensor) -> Tensor:
        """Logits to be filled; pairs outside the map are 0."""
        return like.new_zeros(tuple(self.shape))

    def views(self, x: Tensor) -> Iterator[Tensor]:
        """``(B, rows, cols, heads, a, b, a, b)`` for each region."""
        n = self.window
        x = x.view(*self.size, -1, n, n, n, n)
        for rows, cols, (a, b) in self.regions:
            first, left = rows.start // n, cols.start // n
            last, right = ceil_divide(rows.stop, n), ceil_divide(cols.stop, n)
            yield x[:, first:last, left:right, :, :a, :b, :a, :b]


class _Take(torch.autograd.Function):
    """Copies of a layout's views. The gradient is one tensor, written once; slices add zeros."""

    @staticmethod
    def forward(ctx: Any, layout: MapLayout | PairLayout, x: Tensor) -> tuple[Tensor, ...]:
        ctx.layout = layout
        views = layout.views(x)
        return tuple(view.clone(memory_format=torch.contiguous_format) for view in views)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, _Put.apply(ctx.layout, *grads)


class _Put(torch.autograd.Function):
    """The inverse of :class:`_Take`, and its derivative."""

    @staticmethod
    def forward(ctx: Any, layout: MapLayout | PairLayout, *parts: Tensor) -> Tensor:
        ctx.layout = layout
        out = layout.empty(parts[0])
        for view, part in zip(layout.views(out), parts, strict=True):
            view.copy_(part)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Take.apply(ctx.layout, grad)


def cut_map(
    x: Tensor, regions: Sequence[Region], heads: int, parts: int = 1
) -> list[tuple[Tensor, ...]]:
    """Cut a map into windows and heads.

    Args:
        x: Map of shape ``(B, h, w, parts * heads * d)``.
        regions: Of the map.
        heads: Heads that the channels of a part are divided into.
        parts: Maps that lie side by side in the channels.

    Returns:
        For each region, ``parts`` tensors of shape ``(groups, heads, a * b, d)``.
    """
    taken = _Take.apply(MapLayout(x.shape, regions, heads, parts), x)
    # (B, rows, cols, heads, a, b, d) -> (groups, heads, a * b, d)
    windows = [part.view(-1, heads, part.shape[4] * part.shape[5], part.shape[6]) for part in taken]
    return [tuple(windows[i : i + parts]) for i in range(0, len(windows), parts)]


def join_map(windows: Sequence[Tensor], regions: Sequence[Region], shape: Sequence[int]) -> Tensor:
    """Put windows and heads back into a map.

    Args:
        windows: For each region, tokens of shape ``(groups, heads, a * b, d)``.
        regions: Of the map.
        shape: Of the map, beginning with ``(B, h, w)``.

    Returns:
        Map of shape ``(B, h, w, heads * d)``.
    """
    _, heads, _, d = windows[0].shape
    parts = []
    for tokens, (rows, cols, (a, b)) in zip(windows, regions, strict=True):
        counts = ((rows.stop - rows.start) // a, (cols.stop - cols.start) // b)
        # (groups, heads, a * b, d) -> (B, rows, cols, heads, a, b, d)
        parts.append(tokens.view(shape[0], *counts, heads, a, b, d))
    layout = MapLayout((*shape[:3], heads * d), regions, heads)
    return _Put.apply(layout, *parts)


def cut_pairs(logits: Tensor, shape: Sequence[int], window: int) -> list[Tensor]:
    """Keep the pairs that the map has.

    Args:
        logits: Scores in whole windows, ``(B * rows * cols, heads, N, N)``.
        shape: Of the map, beginning with ``(B, h, w)``.
        window: Side of a whole window in tokens.

    Returns:
        For each of the map's regions, scores of shape ``(groups, heads, a * b, a * b)``.
    """
    layout = _pair_layout(logits.shape[1], shape, window)
    # (B, rows, cols, heads, a, b, a, b) -> (groups, heads, a * b, a * b)
    return [p.flatten(6, 7).flatten(4, 5).flatten(0, 2) for p in _Take.apply(layout, logits)]


def join_pairs(logits: Sequence[Tensor], shape: Sequence[int], window: int) -> Tensor:
    """Put scores into whole windows; pairs outside the map are 0.

    Args:
        logits: For each of the map's regions, ``(groups, heads, a * b, a * b)``.
        shape: Of the map, beginning with ``(B, h, w)``.
        window: Side of a whole window in tokens.

    Returns:
        Scores of shape ``(B * rows * cols, heads, N, N)``.
    """
    layout = _pair_layout(logits[0].shape[1], shape, window)
    parts = []
    for scores, (rows, cols, (a, b)) in zip(logits, layout.regions, strict=True):
        counts = ((rows.stop - rows.start) // a, (cols.stop - cols.start) // b)
        scores = scores.unflatten(-1, (a, b)).unflatten(-3, (a, b))
        parts.append(scores.unflatten(0, (shape[0], *counts)))
    return _Put.apply(layout, *parts)


def _pair_layout(heads: int, shape: Sequence[int], window: int) -> PairLayout:
    rows, cols = (ceil_divide(side, window) for side in shape[1:3])
    size = (shape[0], rows, cols)
    tokens = window**2
    return PairLayout(
        (shape[0] * rows * cols, heads, tokens, tokens),
        regions(shape[1:3], window),
        size,
        window,
    )
