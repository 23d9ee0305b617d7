"""Non-overlapping square windows over a channels-last map (docs/paper_to_code.md, decision 1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .padding import ceil_divide, is_multiple


def partition(x: Tensor, window: int, heads: int = 1) -> Tensor:
    """Cut a map into windows and heads, zero-padded at the bottom and on the right.

    Both cuts are one copy, so that the projections around an attention work on the map itself.

    Args:
        x: Map of shape ``(B, h, w, heads * d)``.
        window: Side of a window in tokens.
        heads: Heads that the channels are divided into.

    Returns:
        Tokens of shape ``(B * rows * cols, heads, window**2, d)``, where ``rows`` and ``cols``
        count the windows needed to cover ``h`` and ``w``.
    """
    b, h, w, c = x.shape
    rows, cols = ceil_divide(h, window), ceil_divide(w, window)
    if not (is_multiple(h, window) and is_multiple(w, window)):
        x = F.pad(x, (0, 0, 0, cols * window - w, 0, rows * window - h))
    x = x.reshape(b, rows, window, cols, window, heads, c // heads)
    # (B, rows, n, cols, n, heads, d) -> (B, rows, cols, heads, n, n, d) -> (groups, heads, N, d)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(b * rows * cols, heads, window**2, c // heads)


def merge(x: Tensor, window: int, shape: Sequence[int]) -> Tensor:
    """Put windows and heads back into the map that :func:`partition` cut, without the padding.

    Args:
        x: Tokens of shape ``(B * rows * cols, heads, window**2, d)``.
        window: Side of a window in tokens.
        shape: Of the map, beginning with ``(B, h, w)``.

    Returns:
        Map of shape ``(B, h, w, heads * d)``.
    """
    b, h, w = shape[:3]
    rows, cols = ceil_divide(h, window), ceil_divide(w, window)
    _, heads, _, d = x.shape
    x = x.view(b, rows, cols, heads, window, window, d)
    # (B, rows, cols, heads, n, n, d) -> (B, rows, n, cols, n, heads, d) -> (B, h, w, heads * d)
    x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, rows * window, cols * window, heads * d)
    return x[:, :h, :w]


def window_mask(
    size: tuple[int, int], window: int, device: torch.device, real: Tensor | None = None
) -> Tensor | None:
    """Tell the tokens of the image from padding, window by window.

    Args:
        size: ``(h, w)`` of the map.
        window: Side of a window in tokens.
        device: Where to put the mask.
        real: Booleans of shape ``(B, h, w)``, true where a token belongs to its image; None if all
            do.

    Returns:
        Booleans of shape ``(B * rows * cols, window**2)``, true where a token is real; with ``B =
        1`` for all images where ``real`` is None; None where there is no padding at all.
    """
    h, w = size
    if real is None:
        if is_multiple(h, window) and is_multiple(w, window):
            return None
        real = torch.ones(1, h, w, dtype=torch.bool, device=device)
    return partition(real[..., None], window).flatten(1)
