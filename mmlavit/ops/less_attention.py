"""Less attention: logits transformed from the previous layer's (paper, eq. 5)."""

from torch import Tensor

from .backends import dispatched
from .logits import clamp, mask_pairs, softmax
from .windows import Windows


@dispatched
def less_attention(
    v: Tensor, logits: Tensor, theta: Tensor, psi: Tensor, windows: Windows
) -> tuple[Tensor, Tensor]:
    """``A^l = Psi A^(l-1) Theta^T``, output ``softmax(A^l) V``.

    Args:
        v: Values, map ``(B, h, w, H * d)``.
        logits: ``A^(l-1)`` of the previous layer, ``(groups, H, N, N)``.
        theta: ``Theta - I``, ``(N, N)``; mixes keys.
        psi: ``Psi - I``, ``(N, N)``; mixes queries.
        windows: Of the map.

    Returns:
        Map ``(B, h, w, H * d)`` and ``A^l``, ``(groups, H, N, N)``, of the type of ``v``; logits of
        padded tokens carry no meaning.
    """
    valid = windows.valid(v)
    logits = mask_pairs(clamp(logits.to(v.dtype)), valid)
    # the identity is a sum, not part of the matrix: bfloat16 would round the deviations away
    half = clamp(logits + logits @ theta.to(v.dtype).T)
    logits = clamp(half + psi.to(v.dtype).expand_as(half) @ half)
    values = windows.split(v, logits.shape[1])  # (groups, H, N, d)
    return windows.join(softmax(logits, valid).to(v.dtype) @ values), logits
