"""Carry a window transform over to another window size (docs/paper_to_code.md, decision 1)."""

from collections.abc import Sequence
from math import isqrt, prod

import torch.nn.functional as F
from torch import Tensor


def is_adapted(key: str, found: Sequence[int], expected: Sequence[int]) -> bool:
    """Tell whether a layer takes a tensor of another shape on loading.

    These are transforms of another window, and the attention residual's kernel as version 0.1.0
    kept it.
    """
    name = key.rpartition('.')[2]
    return name in ('theta', 'psi') or (name == 'kernel' and prod(found) == prod(expected))


def resize_transform(weight: Tensor, num_tokens: int) -> Tensor:
    """Resize the deviation of ``Theta`` or ``Psi`` to windows of another size.

    A row is a function on the window's grid, and so is a column: both are resampled (bicubic over
    the four grid axes). A row sums over more tokens in a larger window, so the values are scaled by
    the ratio of the token counts; the row sums then keep their meaning.

    Args:
        weight: Deviation from the identity, shape ``(N, N)``, of a square window.
        num_tokens: Tokens of the new window.

    Returns:
        Deviation of shape ``(num_tokens, num_tokens)``.

    Raises:
        ValueError: If ``weight`` is no square matrix over a square window, or ``num_tokens`` is no
            square number.
    """
    old, new = isqrt(weight.shape[-1]), isqrt(num_tokens)
    if weight.shape != (old**2, old**2) or new**2 != num_tokens:
        raise ValueError(
            f'cannot resize a transform of shape {tuple(weight.shape)} to {num_tokens} tokens: '
            'both must be square windows'
        )

    def resample(matrix: Tensor) -> Tensor:
        """``(R, old * old) -> (R, new * new)``."""
        grid = matrix.view(1, -1, old, old)
        grid = F.interpolate(grid, size=(new, new), mode='bicubic', align_corners=False)
        return grid.reshape(-1, new * new)

    resized = resample(resample(weight.float()).T.contiguous()).T
    return (resized * (old / new) ** 2).to(weight.dtype).contiguous()
