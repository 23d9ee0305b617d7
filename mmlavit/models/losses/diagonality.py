"""Diagonality-preserving loss (paper, section 3.4)."""

from typing import get_args

from torch import Tensor, nn

from mmlavit import ops
from mmlavit.ops import Windows
from mmlavit.ops.diagonality import Form
from mmlavit.registry import MODELS


def diagonality_loss(
    logits: Tensor, windows: Windows | None = None, form: Form = 'hinge'
) -> Tensor:
    """Ask of an attention map to be symmetric and to peak on its diagonal (paper, eq. 8 and 9).

    Args:
        logits: Logits of shape ``(groups, heads, N, N)``.
        windows: Of the map; padded tokens do not count. None if there are none.
        form: ``'hinge'`` or ``'linear'``, see :func:`mmlavit.ops.diagonality`.

    Returns:
        The loss averaged over groups and heads, a float32 (or float64) scalar.

    Raises:
        ValueError: If ``form`` is unknown.
    """
    asymmetry, excess = ops.diagonality(logits, windows, _check(form))
    return asymmetry + excess


@MODELS.register_module()
class DiagonalityLoss(nn.Module):
    """Module around :func:`diagonality_loss`.

    Args:
        loss_weight: Factor on the loss.
        form: ``'hinge'`` or ``'linear'``.

    Raises:
        ValueError: If ``form`` is unknown.
    """

    def __init__(self, loss_weight: float = 1.0, form: Form = 'hinge') -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.form = _check(form)

    def forward(self, logits: Tensor, windows: Windows | None = None) -> Tensor:
        """Weighted loss of logits ``(groups, heads, N, N)``."""
        return self.loss_weight * diagonality_loss(logits, windows, self.form)


def _check(form: Form) -> Form:
    if form not in get_args(Form):
        raise ValueError(f'form={form!r}: expected one of {get_args(Form)}')
    return form
