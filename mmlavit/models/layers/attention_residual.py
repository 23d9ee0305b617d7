"""Attention residual: the scores of one stage guide the next (paper, section 3.3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .padding import ceil_divide
from .regions import Scores, cut_pairs, join_pairs
from .scores import silence


class AttentionResidual(nn.Module):
    """Downsample attention logits to the next stage's map: ``LS(Conv1x1(Norm(DWConv(A))))``.

    The depthwise convolution runs on the query grid and on the key grid of the whole map at once,
    kernel 2, stride 2 (paper, eq. 6; docs/paper_to_code.md, decision 4)::

        R(i, j) = sum over a, b in {0, 1}^2 of K(a, b) A(2i + a, 2j + b)

    A pair that never attended, in different windows or outside the map, counts as 0. The norm
    takes its statistics from the real pairs of one window and one head, so it depends neither on
    the batch nor on the padding. It has no scale, which the 1x1 convolution holds, and no shift,
    which the softmax would cancel.

    Args:
        in_heads: Heads of the previous stage.
        out_heads: Heads of the next stage.
        in_window: Window side of the previous stage in tokens.
        out_window: Window side of the next stage in tokens.
    """

    def __init__(self, in_heads: int, out_heads: int, in_window: int, out_window: int) -> None:
        super().__init__()
        self.in_window = in_window
        self.out_window = out_window
        self.kernel = nn.Parameter(torch.empty(in_heads, 2, 2, 2, 2))  # heads, a (y, x), b (y, x)
        self.proj = nn.Conv2d(in_heads, out_heads, 1, bias=False)
        self.layer_scale = nn.Parameter(torch.full((out_heads,), 0.1))  # CaiT's start value
        nn.init.normal_(self.kernel, std=(2 / 16) ** 0.5)  # fan-out normal

    def forward(
        self,
        logits: Scores,
        shape: Sequence[int],
        mask: Tensor | None = None,
        out_mask: Tensor | None = None,
        fit: bool = False,
    ) -> Scores:
        """Downsample the logits of a stage.

        Args:
            logits: Scores of the previous stage's last layer, ``(B * windows, in_heads, N, N)``, or
                one tensor a region of its map.
            shape: Of the previous stage's map, beginning with ``(B, h, w)``.
            mask: Booleans of shape ``(B * windows, N)``, true where a token of the previous stage
                is real, None if all are.
            out_mask: The same for the next stage, ``(B * next windows, N')``.
            fit: Whether to return one tensor a region of the next map.

        Returns:
            Residual in float32 or better for the windows of the next map, whose sides are
            ``ceil(h / 2)`` and ``ceil(w / 2)``: ``(B * next windows, out_heads, N', N')``, or a
            list of ``(groups, out_heads, a * b, a * b)``.
        """
        if isinstance(logits, list):
            # what lies outside the map is 0 then
            joined = logits[0] if mask is None else join_pairs(logits, shape, self.in_window)
            logits, mask = joined, None
        assert logits is not None
        # logits near the half-precision limit have squares beyond it
        # (on the meta device, where costs are counted, there is no autocast)
        device = 'cpu' if logits.is_meta else logits.device.type
        with torch.autocast(device, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            scores = self._convolve(silence(logits, mask), shape)
            weight = self.proj.weight.flatten(1) * self.layer_scale[:, None]  # (out_heads, H)
            weight = weight.to(scores.dtype)
            if fit and out_mask is not None:
                out_shape = (shape[0], ceil_divide(shape[1], 2), ceil_divide(shape[2], 2))
                parts = cut_pairs(scores.transpose(0, 1), out_shape, self.out_window)
                parts = [F.layer_norm(part, part.shape[-2:]) for part in parts]
                # (out_heads, H) x (groups, H, (a * b)^2)
                return [(weight @ p.flatten(2)).unflatten(2, p.shape[2:]) for p in parts]
            scores = self._normalize(scores, out_mask)
            # (out_heads, H) x (H, B * next windows * N' * N')
            residual = (weight @ scores.flatten(1)).unflatten(1, scores.shape[1:])
            residual = residual.transpose(0, 1)
            return [residual] if fit else residual

    def _convolve(self, logits: Tensor, shape: Sequence[int]) -> Tensor:
        """``(B * windows, H, N, N) -> (H, B * next windows, N', N')``, by window and scatter-add.

        An odd window has 2x2 cells that straddle its border. Where its cells begin depends on the
        parity of its row and column, so the windows are taken in (up to four) parity classes; the
        halves of a straddling cell meet in the sum.
        """
        n, m = self.in_window, (self.in_window + 1) // 2
        batch, heads = shape[0], logits.shape[1]
        rows, cols = (ceil_divide(s, n) for s in shape[1:3])
        out_rows, out_cols = (ceil_divide(ceil_divide(s, 2), self.out_window) for s in shape[1:3])
        # query y, x, key
        scores = logits.reshape(batch, rows, cols, heads, n, n, n * n)

        length = out_rows * out_cols * self.out_window**4
        # the last place takes what falls outside the next map's windows
        out = scores.new_zeros(heads * batch, length + 1)
        parities = (0, 1) if n % 2 else (0,)
        taps = self._key_taps(len(parities)).to(scores.dtype)
        rows_of, cols_of = self._scatter_indices((rows, cols), (out_rows, out_cols))
        # an open number of windows, in a graph that is exported, may be more than one
        for py in (0,) if isinstance(rows, int) and rows == 1 else parities:
            for px in (0,) if isinstance(cols, int) and cols == 1 else parities:
                y, x = (py, 2 * m - n - py), (px, 2 * m - n - px)
                cells = F.pad(scores[:, py :: len(parities), px :: len(parities)], (0, 0, *x, *y))
                r, c = cells.shape[1:3]
                # (B, r, c, H, m, 2, m, 2, N) -> (H, B, r, c, m, m, 2, 2, N)
                cells = cells.unflatten(4, (m, 2)).unflatten(6, (m, 2))
                cells = cells.permute(3, 0, 1, 2, 4, 6, 5, 7, 8)
                # (H, B * r * c * m * m, 4 * N) x (H, 4 * N, m * m): queries meet in the row, keys
                # in the product
                # not -1: a graph may find no window of a parity
                cells = cells.reshape(heads, batch * r * c * m * m, 4 * n * n) @ taps[py, px]
                # (r, c, query y, query x, key y, key x)
                index = (
                    rows_of[py :: len(parities), None, :, None, :, None]
                    + cols_of[None, px :: len(parities), None, :, None, :]
                )
                index = index.clamp(max=length).view(1, -1).expand(heads * batch, -1)
                out.scatter_add_(1, index, cells.view(heads * batch, r * c * m**4))
        groups = batch * out_rows * out_cols
        return out[:, :length].reshape(heads, groups, self.out_window**2, self.out_window**2)

    def _key_taps(self, parities: int) -> Tensor:
        """The kernel as matrices from a query cell's keys to key cells.

        Args:
            parities: How many key rows, and columns, may come before the window in its first cell.

        Returns:
            Matrices of shape ``(parities, parities, H, 4 * N, m * m)``, those of 0 first.
        """
        n, m = self.in_window, (self.in_window + 1) // 2
        device = self.kernel.device
        place = torch.arange(parities, device=device)[:, None] + torch.arange(n, device=device)
        # (parities, n, m, 2): whether a key is the first or the second of a cell
        taps = place[:, :, None] == torch.arange(2 * m, device=device)
        taps = taps.to(self.kernel.dtype).unflatten(-1, (m, 2))
        # query tap (a, b), key tap (c, d), parity (p, q), key (y, x), key cell (i, j)
        matrix = torch.einsum('habcd,pyic,qxjd->pqhabyxij', self.kernel, taps, taps)
        return matrix.reshape(parities, parities, len(self.kernel), 4 * n * n, m * m)

    def _scatter_indices(
        self, size: tuple[int, int], out_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Where each downsampled pair goes, flat over an image's logits of the next stage.

        The place is the sum of a part for the row axis and one for the column axis. A pair whose
        ends fall into different windows of the next map, or outside it, gets a part that is too
        large.

        Args:
            size: Rows and columns of windows.
            out_size: The same of the next stage.

        Returns:
            The parts of the rows of windows, ``(rows, m, m)``, a query's and a key's row of cells
            behind it, and of the columns, ``(cols, m, m)``.
        """
        tokens = self.out_window**2
        length = out_size[0] * out_size[1] * tokens**2
        cells = torch.arange((self.in_window + 1) // 2, device=self.kernel.device)

        def axis(windows: int, count: int, window_step: int, token_step: int) -> Tensor:
            first = torch.arange(windows, device=cells.device) * self.in_window // 2
            cell = first[:, None] + cells  # (windows, m)
            window = cell // self.out_window
            token = cell % self.out_window * token_step
            index = window * window_step + token * tokens  # part of the query
            index = index[:, :, None] + token[:, None, :]  # (windows, m, m), the key's part added
            together = (window[:, :, None] == window[:, None, :]) & (window < count)[:, :, None]
            return index.masked_fill(~together, length)

        return (
            axis(size[0], out_size[0], out_size[1] * tokens**2, self.out_window),
            axis(size[1], out_size[1], tokens**2, 1),
        )

    def _normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Zero mean and unit variance over the real pairs of each window and head.

        Args:
            scores: ``(H, B * next windows, N', N')``.
            mask: ``(B * next windows, N')``, true where a token is real.
        """
        if mask is None:
            return F.layer_norm(scores, scores.shape[-2:])
        pairs = (mask[:, :, None] & mask[:, None, :]).to(scores.dtype)
        # a window may hold nothing but padding
        count = pairs.sum((-2, -1), keepdim=True).clamp(min=1)
        # padded pairs are 0 already
        scores = (scores - scores.sum((-2, -1), keepdim=True) / count) * pairs
        variance = scores.square().sum((-2, -1), keepdim=True) / count
        return scores * (variance + 1e-5).rsqrt()
