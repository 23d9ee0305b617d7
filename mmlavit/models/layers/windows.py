"""Non-overlapping square windows over a channels-last map (docs/paper_to_code.md, row 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def partition(x: Tensor, window: int) -> Tensor:
    """Cut a map into windows, zero-padded at the bottom and on the right.

    Args:
        x: Map of shape ``(B, h, w, C)``.
        window: Side of a window in tokens.

    Returns:
        Tokens of shape ``(B * rows * cols, window**2, C)``, where ``rows`` and ``cols`` count the
        windows needed to cover ``h`` and ``w``.
    """
    b, h, w, c = x.shape
    rows, cols = -(-h // window), -(-w // window)
    if (rows * window, cols * window) != (h, w):
        x = F.pad(x, (0, 0, 0, cols * window - w, 0, rows * window - h))
    x = x.view(b, rows, window, cols, window, c)
    # (B, rows, n, cols, n, C) -> (B, rows, cols, n, n, C) -> (B * rows * cols, n * n, C)
    return x.transpose(2, 3).reshape(b * rows * cols, window * window, c)


def merge(x: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Put windows back into the map that :func:`partition` cut, dropping the padding.

    Args:
        x: Tokens of shape ``(B * rows * cols, window**2, C)``.
        window: Side of a window in tokens.
        size: ``(h, w)`` of the map.

    Returns:
        Map of shape ``(B, h, w, C)``.
    """
    h, w = size
    rows, cols = -(-h // window), -(-w // window)
    x = x.view(-1, rows, cols, window, window, x.shape[-1])
    # (B, rows, cols, n, n, C) -> (B, rows, n, cols, n, C) -> (B, rows * n, cols * n, C)
    x = x.transpose(2, 3).reshape(x.shape[0], rows * window, cols * window, x.shape[-1])
    return x[:, :h, :w]


def real_tokens(size: tuple[int, int], window: int, device: torch.device) -> Tensor | None:
    """Tell the tokens of the map from the padding that completes the last windows.

    Args:
        size: ``(h, w)`` of the map.
        window: Side of a window in tokens.
        device: Where to put the mask.

    Returns:
        Booleans of shape ``(rows * cols, window**2)``, true where a token is real, or None where
        the windows cover the map exactly.
    """
    h, w = size
    if h % window == 0 and w % window == 0:
        return None
    return partition(torch.ones(1, h, w, 1, dtype=torch.bool, device=device), window).squeeze(-1)
