"""Attention residual: the scores of one stage guide the next (paper, section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .windows import real_tokens


class AttentionResidual(nn.Module):
    """Downsample attention logits to the next stage's map: ``LS(Conv1x1(Norm(DWConv(A))))``.

    The depthwise convolution runs on the query grid and on the key grid of the whole map at once,
    kernel 2, stride 2 (paper, eq. 6; docs/paper_to_code.md, row 4)::

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

    def forward(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Downsample the logits of a stage.

        Args:
            logits: Scores of the previous stage's last layer, ``(B * windows, in_heads, N, N)``.
            size: ``(h, w)`` of the previous stage's map.

        Returns:
            Residual in float32 or better for the windows of the next map, whose sides are
            ``ceil(h / 2)`` and ``ceil(w / 2)``: ``(B * next windows, out_heads, N', N')``.
        """
        # logits near the half-precision limit have squares beyond it
        with torch.autocast(logits.device.type, enabled=False):
            mask = real_tokens(size, self.in_window, logits.device)
            dtype = torch.promote_types(logits.dtype, torch.float32)
            scores = self._convolve(logits.to(dtype), size, mask)
            out_size = (-(-size[0] // 2), -(-size[1] // 2))
            scores = self._normalize(scores, real_tokens(out_size, self.out_window, logits.device))
            return F.conv2d(scores, self.proj.weight * self.layer_scale[:, None, None, None])

    def _convolve(self, logits: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor:
        """``(B * windows, H, N, N) -> (B * next windows, H, N', N')``, by window and scatter-add.

        An odd window has 2x2 cells that straddle its border. Where its cells begin depends on the
        parity of its row and column, so the windows are taken in (up to four) parity classes; the
        halves of a straddling cell meet in the sum.
        """
        n, m = self.in_window, (self.in_window + 1) // 2
        heads = logits.shape[1]
        rows, cols = -(-size[0] // n), -(-size[1] // n)
        out_rows, out_cols = (-(-((s + 1) // 2) // self.out_window) for s in size)
        scores = logits.view(-1, rows, cols, heads, n * n, n * n)
        if mask is not None:
            real = mask.view(rows, cols, 1, n * n)
            scores = scores.masked_fill(~(real[..., :, None] & real[..., None, :]), 0)
        scores = scores.unflatten(-1, (n, n)).unflatten(-3, (n, n))  # ..., query y, x, key y, x
        kernel = self.kernel.flatten(1)[..., None]  # (H, 16, 1)

        length = out_rows * out_cols * heads * self.out_window**4
        # the last place takes what falls outside the next map's windows
        out = scores.new_zeros(len(scores), length + 1)
        parities = (0, 1) if n % 2 else (0,)
        for py in parities[:rows]:
            for px in parities[:cols]:
                y, x = (py, 2 * m - n - py), (px, 2 * m - n - px)
                cells = scores[:, py :: len(parities), px :: len(parities)]
                cells = F.pad(cells, x + y + x + y)
                b, r, c = cells.shape[:3]
                # (b, r, c, H, m, 2, m, 2, m, 2, m, 2) -> (b, r, c, H, m * m * m * m, 16)
                cells = cells.view(b, r, c, heads, m, 2, m, 2, m, 2, m, 2)
                cells = cells.permute(0, 1, 2, 3, 4, 6, 8, 10, 5, 7, 9, 11)
                cells = cells.reshape(b, r, c, heads, m**4, 16) @ kernel
                index = self._scatter_index(
                    torch.arange(py, rows, len(parities), device=out.device),
                    torch.arange(px, cols, len(parities), device=out.device),
                    (out_rows, out_cols),
                )
                out = out.scatter_add(1, index.expand(b, -1), cells.view(b, -1))
        return out[:, :length].reshape(-1, heads, self.out_window**2, self.out_window**2)

    def _scatter_index(self, rows: Tensor, cols: Tensor, windows: tuple[int, int]) -> Tensor:
        """Where each downsampled pair of the given windows goes, flat over the next stage's logits.

        The flat index is a sum of a part for the row axis, the column axis and the head. A pair
        whose ends fall into different windows of the next map, or outside it, gets the index after
        the last.
        """
        tokens, heads = self.out_window**2, len(self.kernel)
        per_window = heads * tokens**2
        length = windows[0] * windows[1] * per_window

        def axis(starts: Tensor, count: int, window_step: int, token_step: int) -> Tensor:
            first = starts * self.in_window // 2
            cell = first[:, None] + torch.arange((self.in_window + 1) // 2, device=starts.device)
            window = cell // self.out_window  # (starts, m)
            token = cell % self.out_window * token_step
            index = window * window_step + token * tokens  # part of the query
            index = index[:, :, None] + token[:, None, :]  # (starts, m, m), the key's part added
            together = (window[:, :, None] == window[:, None, :]) & (window < count)[:, :, None]
            return index.masked_fill(~together, length)

        y = axis(rows, windows[0], windows[1] * per_window, self.out_window)
        x = axis(cols, windows[1], per_window, 1)
        head = torch.arange(heads, device=rows.device) * tokens**2
        # (rows, cols, heads, query y, query x, key y, key x)
        index = (
            y[:, None, None, :, None, :, None]
            + x[None, :, None, None, :, None, :]
            + head[None, None, :, None, None, None, None]
        )
        return index.clamp(max=length).view(1, -1)

    def _normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Zero mean and unit variance over the real pairs of each window and head.

        Args:
            scores: ``(B * next windows, H, N', N')``.
            mask: ``(next windows, N')``, true where a token is real.
        """
        if mask is None:
            return F.layer_norm(scores, scores.shape[-2:])
        mask = mask.repeat(len(scores) // len(mask), 1)
        pairs = (mask[:, None, :, None] & mask[:, None, None, :]).to(scores.dtype)
        count = pairs.sum((-2, -1), keepdim=True)
        # padded pairs are 0 already
        scores = (scores - scores.sum((-2, -1), keepdim=True) / count) * pairs
        variance = scores.square().sum((-2, -1), keepdim=True) / count
        return scores * (variance + 1e-5).rsqrt()
