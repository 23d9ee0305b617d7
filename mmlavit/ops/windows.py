"""Which tokens of a map attend together (docs/paper_to_code.md, decision 1)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true


class Windows(NamedTuple):
    """Non-overlapping squares of tokens that cover a map from its upper left corner.

    A window that reaches over the lower or right border holds padded tokens: they are zero, and
    valid tokens never attend to them. A window as large as the map is global attention.

    Attributes:
        side: Side ``n`` of a window; it holds ``N = n * n`` tokens.
        batch: Maps.
        height: Rows of tokens in a map.
        width: Columns of tokens in a map.
    """

    side: int
    batch: int
    height: int
    width: int

    @property
    def rows(self) -> int:
        """Rows of windows in a map."""
        return ceil_divide(self.height, self.side)

    @property
    def cols(self) -> int:
        """Columns of windows in a map."""
        return ceil_divide(self.width, self.side)

    def split(self, x: Tensor, heads: int = 1) -> Tensor:
        """Split a map ``(B, h, w, heads * d)`` into groups of tokens ``(groups, heads, N, d)``.

        The ``groups = B * rows * cols`` windows follow each other row by row, image by image.
        """
        b, n, rows, cols = self.batch, self.side, self.rows, self.cols
        if not self._fits():
            x = F.pad(x, (0, 0, 0, cols * n - self.width, 0, rows * n - self.height))
        d = x.shape[-1] // heads
        # (B, rows, n, cols, n, heads, d) -> (B, rows, cols, heads, n, n, d)
        x = x.reshape(b, rows, n, cols, n, heads, d).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(b * rows * cols, heads, n * n, d)

    def join(self, x: Tensor) -> Tensor:
        """Join groups of tokens ``(groups, heads, N, d)`` to the map ``(B, h, w, heads * d)``."""
        b, n, rows, cols = self.batch, self.side, self.rows, self.cols
        _, heads, _, d = x.shape
        # (groups, heads, N, d) -> (B, rows, n, cols, n, heads, d) -> (B, h, w, heads * d)
        x = x.reshape(b, rows, cols, heads, n, n, d).permute(0, 1, 4, 2, 5, 3, 6)
        x = x.reshape(b, rows * n, cols * n, heads * d)
        if self._fits():
            return x
        # a slice would be contiguous at some sizes only, and a graph for all sizes has to know
        return F.pad(x, (0, 0, 0, self.width - cols * n, 0, self.height - rows * n))

    def valid(self, like: Tensor) -> Tensor | None:
        """Mask of the tokens that lie on the map, ``(groups, 1, N, 1)``: 1 there, 0 for padding.

        None where no token is padding. The mask has the type and device of ``like``.
        """
        if self._fits():
            return None
        return self.split(like.new_ones(self.batch, self.height, self.width, 1))

    def _fits(self) -> bool:
        return is_multiple(self.height, self.side) and is_multiple(self.width, self.side)


def ceil_divide(side: int, step: int) -> int:
    """Count the windows or patches of side ``step`` that cover a side of a map."""
    # ONNX divides integers toward zero, so that -(-side // step) would come out one too low
    return (side + step - 1) // step


def is_multiple(side: int, step: int) -> bool:
    """Tell whether a side of a map needs no padding to a multiple of ``step``.

    A graph that pads serves every size, by nothing where there is nothing to pad.
    """
    return is_known(side % step == 0)


def is_known(condition: bool) -> bool:
    """Tell whether a condition on sizes holds, for all sizes that a graph leaves open."""
    if torch.compiler.is_compiling():
        return statically_known_true(condition)
    return condition is True  # while torch.jit traces, sizes are tensors
