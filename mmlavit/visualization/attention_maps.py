"""Attention maps of a LaViT, from the logits that its forward pass has."""

import torch
from torch import Tensor, nn

from mmlavit.errors import UserError
from mmlavit.models import LaViT, LayerTrace
from mmlavit.ops.logits import mask_pairs, softmax

__all__ = ['attention_of', 'find_backbone']


@torch.no_grad()
def attention_of(layer: LayerTrace) -> Tensor:
    """Attention maps of one layer, ``(groups, heads, N, N)`` in float32 or better.

    The rows of valid tokens sum to 1; where query or key is padding, the map is 0.
    """
    valid = layer.windows.valid(layer.logits)
    return mask_pairs(softmax(layer.logits, valid), valid)


def find_backbone(model: nn.Module) -> LaViT:
    """Find the LaViT in a model, wrapped or not.

    Raises:
        UserError: If there is none.
    """
    for module in model.modules():
        if isinstance(module, LaViT):
            return module
    raise UserError(f'{type(model).__name__} has no mmlavit.LaViT, whose attention could be read')
