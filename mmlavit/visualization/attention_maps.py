"""Attention maps of a LaViT, from the logits that its forward pass has."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmlavit.errors import UserError
from mmlavit.models import LaViT, LayerTrace
from mmlavit.ops.logits import mask_pairs, softmax

__all__ = [
    'Box',
    'ImageGeometry',
    'PointAttention',
    'attention_of',
    'attention_of_point',
    'find_backbone',
]

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the image


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


class ImageGeometry(NamedTuple):
    """How the model's input lies on the image of the file: ``input = image * scale - offset``.

    All pairs are (x, y) in pixels.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    shape: tuple[int, int]  # of the input, without padding
    image: tuple[int, int]

    @classmethod
    def of_sample(cls, meta: dict[str, Any]) -> 'ImageGeometry':
        """Read it from what a test pipeline that resizes, crops the center and pads has noted.

        Args:
            meta: The sample's ``metainfo``.

        Raises:
            UserError: If the pipeline flips the image.
        """
        if meta.get('flip'):
            raise UserError('the test pipeline flips the image; remove the flip')
        (height, width), (h, w) = meta['ori_shape'][:2], meta['img_shape'][:2]
        x, y = (meta.get('scale_factor') or (1.0, 1.0))[:2]
        # of what the resized image has more than the input, the crop has taken half on each side
        offset = (round((round(width * x) - w) / 2), round((round(height * y) - h) / 2))
        return cls((x, y), (max(0, offset[0]), max(0, offset[1])), (w, h), (width, height))

    @property
    def visible(self) -> Box:
        """What the model sees of the image."""
        right, bottom = self.to_image(*self.shape)
        return (*self.to_image(0, 0), min(right, self.image[0]), min(bottom, self.image[1]))

    def to_input(self, x: float, y: float) -> tuple[float, float]:
        """Map a place in the image to the input."""
        return x * self.scale[0] - self.offset[0], y * self.scale[1] - self.offset[1]

    def to_image(self, x: float, y: float) -> tuple[float, float]:
        """Map a place in the input to the image."""
        return (x + self.offset[0]) / self.scale[0], (y + self.offset[1]) / self.scale[1]


class PointAttention(NamedTuple):
    """The attention that the token of one pixel pays to its window."""

    layer: LayerTrace
    weights: np.ndarray  # (heads, rows, cols), padded keys left out
    box: Box  # of the window


def attention_of_point(
    layer: LayerTrace, point: tuple[int, int], geometry: ImageGeometry
) -> PointAttention:
    """Take the attention of one pixel from a layer's maps.

    Args:
        layer: Logits of one image.
        point: Pixel (x, y) of the image, inside what the model sees.
        geometry: Of the image.
    """
    stride, n = 4 * 2 ** (layer.stage - 1), layer.windows.side
    height, width = layer.windows.height, layer.windows.width
    u, v = geometry.to_input(point[0] + 0.5, point[1] + 0.5)  # the pixel's center
    col, row = min(int(u // stride), width - 1), min(int(v // stride), height - 1)
    group = (row // n) * layer.windows.cols + col // n
    weights = attention_of(layer)[group, :, (row % n) * n + col % n].unflatten(-1, (n, n))
    left, top = col // n * n, row // n * n
    rows, cols = min(n, height - top), min(n, width - left)  # of valid tokens
    start = geometry.to_image(left * stride, top * stride)
    end = geometry.to_image((left + cols) * stride, (top + rows) * stride)
    return PointAttention(layer, weights[:, :rows, :cols].cpu().numpy(), (*start, *end))
