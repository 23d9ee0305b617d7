"""Attention residual: logits downsampled to the next stage's map (paper, section 3.3, eq. 6)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import dispatched
from .logits import at_least_float32, mask_pairs, without_autocast
from .windows import Windows, is_known


@dispatched
def attention_residual(
    logits: Tensor, kernel: Tensor, windows: Windows, next_windows: Windows
) -> Tensor:
    """``Norm(DWConv(A))``: a depthwise convolution over query grid and key grid at once, normed.

    Kernel and stride are 2 (docs/paper_to_code.md, decision 4)::

        R(i, j) = sum over a, b in {0, 1}^2 of K(a, b) A(2i + a, 2j + b)

    A pair that never attended, in different windows or outside the map, counts as 0. The norm
    takes its statistics from the valid pairs of one window and one head, so it depends neither on
    the batch nor on the padding.

    Args:
        logits: ``A`` of the previous stage, ``(groups, H, N, N)``.
        kernel: ``K``, ``(H, 4, 4)``: the taps ``a`` and ``b``, each row by row.
        windows: Of the previous stage's map.
        next_windows: Of the next one, whose sides are halves, rounded up.

    Returns:
        ``(next groups, H, N', N')`` in float32 or better, 0 where a token is padding.
    """
    # the squares of logits near float16's limit lie beyond it
    with without_autocast(logits):
        logits = logits.to(at_least_float32(logits))
        pairs = _convolve(
            mask_pairs(logits, windows.valid(logits)),
            kernel.to(logits.dtype),
            windows,
            next_windows,
        )
        return _normalize(pairs, next_windows.valid(pairs))


def _convolve(logits: Tensor, kernel: Tensor, windows: Windows, next_windows: Windows) -> Tensor:
    """Convolve window by window, and add each pair of cells where the next stage has it.

    An odd window has 2x2 cells that straddle its border. Where its cells begin depends on the
    parity of its row and column, so the windows are taken in (up to four) parity classes; the
    halves of a straddling cell meet in the sum.
    """
    n, heads = windows.side, logits.shape[1]
    batch, rows, cols = windows.batch, windows.rows, windows.cols
    m = (n + 1) // 2  # cells on a side that a window reaches into
    next_n, next_rows, next_cols = next_windows.side, next_windows.rows, next_windows.cols
    length = next_rows * next_cols * next_n**4
    # the place of a pair is the sum of a part for its rows and one for its columns
    steps = ((next_cols * next_n**4, next_n**3, next_n), (next_n**4, next_n**2, 1))
    of_rows = _places(logits, n, next_n, (rows, next_rows), steps[0], length)
    of_cols = _places(logits, n, next_n, (cols, next_cols), steps[1], length)
    logits = logits.reshape(batch, rows, cols, heads, n, n, n * n)
    # what falls apart in the next stage's windows, or outside its map, goes to the last place
    out = logits.new_zeros(batch, heads, length + 1)
    step = 2 if n % 2 else 1
    for y in range(1 if is_known(rows == 1) else step):
        for x in range(1 if is_known(cols == 1) else step):
            # zeros complete the queries' cells
            cells = F.pad(logits[:, y::step, x::step], (0, 0, x, 2 * m - n - x, y, 2 * m - n - y))
            # (B, r, c, H, m, 2, m, 2, N) -> (H, B, r, c, m, m, 2, 2, N): four queries a row
            cells = cells.unflatten(4, (m, 2)).unflatten(6, (m, 2))
            cells = cells.permute(3, 0, 1, 2, 4, 6, 5, 7, 8)
            # (H, B * r * c * m * m, 4 * N) x (H, 4 * N, m * m): queries and keys meet
            cells = cells.reshape(heads, -1, 4 * n * n)
            cells = cells @ _taps(kernel, n, y, x)
            # (r, 1, query y, 1, key y, 1) + (1, c, 1, query x, 1, key x)
            index = of_rows[y::step, None, :, None, :, None] + of_cols[x::step, None, :, None, :]
            index = index.clamp(max=length).view(1, 1, -1).expand(batch, heads, -1)
            cells = cells.reshape(heads, batch, -1).transpose(0, 1)
            out = out.scatter_add(2, index, cells)
    out = out[..., :length].reshape(batch, heads, next_rows * next_cols, next_n**2, next_n**2)
    # (B, H, windows, N', N') -> (groups, H, N', N')
    return out.transpose(1, 2).flatten(0, 1)


def _taps(kernel: Tensor, side: int, y: int, x: int) -> Tensor:
    """The kernel as matrices ``(H, 4 * N, m * m)`` from four queries' keys to cells of keys.

    ``y`` and ``x`` say how many rows and columns of the first cells lie before the window.
    """
    m = (side + 1) // 2
    # (4, n, n) -> (m, m): the keys of each tap, one at a time
    keys = torch.eye(side * side, dtype=kernel.dtype, device=kernel.device)
    keys = F.pad(keys.view(-1, side, side), (x, 2 * m - side - x, y, 2 * m - side - y))
    keys = keys.view(-1, m, 2, m, 2).permute(0, 1, 3, 2, 4).reshape(side * side, m * m, 4)
    # query tap a, key tap b, key k, cell c
    return torch.einsum('hab,kcb->hakc', kernel, keys).flatten(1, 2)


def _places(
    like: Tensor, side: int, next_side: int, counts: Sequence[int], steps: Sequence[int], last: int
) -> Tensor:
    """Where the cells of windows lie in the next stage's logits, along one axis of the map.

    Args:
        like: On the device that matters.
        side: Of a window.
        next_side: Of a window of the next stage.
        counts: Windows along the axis, and those of the next stage.
        steps: From one window of the next stage to the next, one query to the next, one key to the
            next.
        last: For a pair of cells in different windows of the next stage, or outside its map.

    Returns:
        ``(windows, m, m)``: for each window, its cells of queries and its cells of keys.
    """
    first = torch.arange(counts[0], device=like.device) * side // 2
    cell = first[:, None] + torch.arange((side + 1) // 2, device=like.device)  # (windows, m)
    window, token = cell // next_side, cell % next_side
    place = (window * steps[0] + token * steps[1])[:, :, None] + token[:, None, :] * steps[2]
    together = (window[:, :, None] == window[:, None, :]) & (window < counts[1])[:, :, None]
    return place.masked_fill(~together, last)


def _normalize(pairs: Tensor, valid: Tensor | None) -> Tensor:
    """Zero mean and unit variance over the valid pairs of each window and head, 0 elsewhere."""
    if valid is None:
        return F.layer_norm(pairs, pairs.shape[-2:])
    count = valid.sum((-2, -1), keepdim=True) ** 2  # (groups, 1, 1, 1)
    # padded pairs are 0 already
    pairs = mask_pairs(pairs - pairs.sum((-2, -1), keepdim=True) / count, valid)
    variance = pairs.square().sum((-2, -1), keepdim=True) / count
    return pairs * (variance + 1e-5).rsqrt()
