"""Stochastic depth (Huang et al., 2016)."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, skip a branch for a whole image, and scale it up for the others.

    Args:
        drop_prob: Probability of skipping.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Drop from ``(B, ...)``."""
        if not self.training or self.drop_prob == 0:
            return x
        keep = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - self.drop_prob)
        return x * keep.div_(1 - self.drop_prob)

    def extra_repr(self) -> str:
        """Show the probability in a printed model."""
        return f'{self.drop_prob:.3f}'
