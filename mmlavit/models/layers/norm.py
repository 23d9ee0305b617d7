"""LayerNorms of maps: before attention, before the feed-forward network, behind a stage."""

from torch import Tensor, nn

from mmlavit import ops


class Norm(nn.LayerNorm):
    """LayerNorm of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a map ``(B, h, w, C)``."""
        return ops.add_norm(x, None, self.weight, self.bias, self.eps)[1]


class AddNorm(nn.LayerNorm):
    """LayerNorm of the sum of a map and a branch: one pass over memory on a GPU."""

    def forward(  # type: ignore[override]
        self, x: Tensor, branch: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add and normalize maps ``(B, h, w, C)``; returns the sum and its norm."""
        return ops.add_norm(x, branch, self.weight, self.bias, self.eps)


class OutputNorm(nn.LayerNorm):
    """LayerNorm of a stage's map, handed to necks and heads with its channels first."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a map ``(B, h, w, C)``, and return it as ``(B, C, h, w)``.

        It is contiguous: RoIAlign reads raw memory, so that a permuted view would come out as
        garbage.
        """
        return super().forward(x).permute(0, 3, 1, 2).contiguous()
