"""What a training step computes."""

from collections.abc import Callable
from typing import Any

import torch
from timing import Setting
from torch import Tensor, nn

from mmlavit.models import LayerTrace, diagonality_loss, trace_layers


class TrainingLoss(nn.Module):
    """A loss on the maps of a backbone and, as the configs train a LaViT, on its attention.

    Args:
        backbone: Any.
        diagonality: Whether the diagonality-preserving (DP) loss of its less-attention layers
            counts, with a weight of 1.
    """

    def __init__(self, backbone: nn.Module, diagonality: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self._diagonality = diagonality
        self._layers: list[LayerTrace] = []
        if diagonality:
            trace_layers(backbone, self._keep, kinds=('LA',))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the loss of images ``(B, 3, h, w)``."""
        self._layers.clear()
        maps = self.backbone(images)
        # one channel of each: the mean of a map behind a LayerNorm has no gradient
        loss = torch.stack([x[:, 0].sum() for x in maps]).sum()
        if self._diagonality:
            values = [diagonality_loss(layer.logits, layer.windows) for layer in self._layers]
            loss = loss + torch.stack(values).mean()
        return loss

    def _keep(self, layer: LayerTrace) -> None:
        # not the list's own `append`, at which torch.compile would break the graph
        self._layers.append(layer)


def forward(model: Callable[[Tensor], object], images: Tensor, setting: Setting) -> None:
    """Predict as the toolboxes do."""
    with torch.no_grad(), setting.precision():
        model(images)


def training_step(loss: Any, images: Tensor, setting: Setting) -> None:
    """Make new gradients of a :class:`TrainingLoss`, compiled or not; no optimizer."""
    loss.zero_grad()
    with setting.precision():
        value = loss(images)
    value.backward()
