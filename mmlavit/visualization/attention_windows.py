"""Where the attention of a pixel lies in the image."""

from typing import Any, NamedTuple

import numpy as np

from mmlavit.errors import UserError
from mmlavit.models import LayerTrace

from .attention_maps import attention_of

__all__ = ['Box', 'ImageGeometry', 'PointAttention', 'attention_of_point']

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the image


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
        image, shape = meta['ori_shape'][1::-1], meta['img_shape'][1::-1]
        scale = meta.get('scale_factor') or (1.0, 1.0)
        resized = (round(size * factor) for size, factor in zip(image, scale, strict=False))
        offset = tuple(
            max(0.0, round((full - kept) / 2)) for full, kept in zip(resized, shape, strict=True)
        )
        return cls((scale[0], scale[1]), (offset[0], offset[1]), tuple(shape), tuple(image))

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
    corners = ((left, top), (left + cols, top + rows))
    start, end = (geometry.to_image(x * stride, y * stride) for x, y in corners)
    return PointAttention(layer, weights[:, :rows, :cols].cpu().numpy(), (*start, *end))
