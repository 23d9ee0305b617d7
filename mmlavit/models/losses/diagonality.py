"""Diagonality-preserving loss (paper, section 3.4)."""

from typing import Literal

import torch
from torch import Tensor, nn

from mmlavit.registry import MODELS

FORMS = ('hinge', 'linear')


def diagonality_loss(
    logits: Tensor, mask: Tensor | None = None, form: Literal['hinge', 'linear'] = 'hinge'
) -> Tensor:
    """Ask of an attention map to be symmetric and to peak on its diagonal (paper, eq. 8 and 9).

    ``'hinge'`` is bounded and works on ``P = softmax(A)``. It is zero exactly when ``P`` equals its
    transpose and no entry of a row exceeds the diagonal::

        mean_ij |P_ij - P_ji| * N / 2  +  mean_i mean_{j != i} max(0, P_ij - P_ii)

    ``'linear'`` keeps the published shape on the logits, unbounded below, for comparison::

        mean_ij |A_ij - A_ji| * N / 2  +  mean_i (sum_{j != i} A_ij - (N - 1) A_ii)

    Args:
        logits: Scores of shape ``(groups, heads, N, N)``.
        mask: Booleans of shape ``(groups, N)``, true where a token is real. Padded tokens do not
            count, and ``N`` is the number of real ones.
        form: ``'hinge'`` or ``'linear'``.

    Returns:
        The loss averaged over groups and heads, a float32 (or float64) scalar.

    Raises:
        ValueError: If ``form`` is unknown.
    """
    if form not in FORMS:
        raise ValueError(f'form={form!r}: expected one of {FORMS}')
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    n = scores.shape[-1]
    if mask is None:
        mask = torch.ones(len(scores), n, dtype=torch.bool, device=scores.device)
    real = mask[:, None, :]  # (groups, 1, N)
    if form == 'hinge':
        scores = scores.masked_fill(~real[..., None, :], torch.finfo(scores.dtype).min).softmax(-1)
    scores = scores.masked_fill(~(real[..., :, None] & real[..., None, :]), 0)
    count = real.sum(-1).clamp(min=1).to(scores.dtype)  # (groups, 1)

    # mean over count^2 pairs, times count / 2
    asymmetry = (scores - scores.mT).abs().sum((-2, -1)) / (2 * count)
    excess = scores - scores.diagonal(dim1=-2, dim2=-1)[..., None]  # A_ij - A_ii, 0 where i = j
    excess = excess.masked_fill(~real[..., None, :], 0)
    if form == 'hinge':
        excess = excess.clamp(min=0) / (count - 1).clamp(min=1)[..., None, None]
    return (asymmetry + excess.sum((-2, -1)) / count).mean()


@MODELS.register_module()
class DiagonalityLoss(nn.Module):
    """Module around :func:`diagonality_loss`.

    Args:
        loss_weight: Factor on the loss.
        form: ``'hinge'`` or ``'linear'``.

    Raises:
        ValueError: If ``form`` is unknown.
    """

    def __init__(
        self, loss_weight: float = 1.0, form: Literal['hinge', 'linear'] = 'hinge'
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f'form={form!r}: expected one of {FORMS}')
        self.loss_weight = loss_weight
        self.form: Literal['hinge', 'linear'] = form

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weighted loss of logits ``(groups, heads, N, N)`` and mask ``(groups, N)``."""
        return self.loss_weight * diagonality_loss(logits, mask, self.form)
