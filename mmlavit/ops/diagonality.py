"""Diagonality-preserving loss (paper, section 3.4, eq. 8 and 9)."""

from typing import Literal

from torch import Tensor

from .backends import dispatched
from .logits import at_least_float32, mask_pairs, softmax
from .windows import Windows

Form = Literal['hinge', 'linear']


@dispatched
def diagonality(logits: Tensor, windows: Windows | None, form: Form) -> tuple[Tensor, Tensor]:
    """How far attention is from symmetric, and from peaking on its diagonal.

    ``'hinge'`` is bounded and works on ``P = softmax(A)``; both terms are zero exactly when ``P``
    equals its transpose and no entry of a row exceeds the diagonal::

        mean_ij |P_ij - P_ji| * N / 2   and   mean_i mean_{j != i} max(0, P_ij - P_ii)

    ``'linear'`` keeps the published shape on the logits, unbounded below, for comparison::

        mean_ij |A_ij - A_ji| * N / 2   and   mean_i (sum_{j != i} A_ij - (N - 1) A_ii)

    Args:
        logits: ``A``, ``(groups, H, N, N)``.
        windows: Of the map; padded tokens do not count, and ``N`` is the number of valid ones.
            None if all are valid.
        form: ``'hinge'`` or ``'linear'``.

    Returns:
        Asymmetry and excess over the diagonal, averaged over groups and heads: scalars of float32
        or better.
    """
    x = logits.to(at_least_float32(logits))
    valid = None if windows is None else windows.valid(x)
    if form == 'hinge':
        x = softmax(x, valid)
    x = mask_pairs(x, valid)
    excess = x - x.diagonal(dim1=-2, dim2=-1)[..., None]  # A_ij - A_ii, 0 where i = j
    # (groups, 1)
    count = x.new_full((1, 1), x.shape[-1]) if valid is None else valid.sum((-2, -1))
    if valid is not None:
        excess = excess * valid.transpose(-2, -1)
    if form == 'hinge':
        excess = excess.clamp(min=0) / (count - 1).clamp(min=1)[..., None, None]
    # mean over count^2 pairs, times count / 2
    asymmetry = (x - x.transpose(-2, -1)).abs().sum((-2, -1)) / (2 * count)
    return asymmetry.mean(), (excess.sum((-2, -1)) / count).mean()
