"""Where the attention of a pixel lies in the image."""

import numpy as np
import pytest
import torch
from attention_definition import valid_pairs
from mmcv.transforms import CenterCrop
from mmpretrain.datasets.transforms import ResizeEdge
from small_models import make_layer

from mmlavit.errors import UserError
from mmlavit.ops import Windows
from mmlavit.visualization.attention_windows import ImageGeometry, attention_of_point


@pytest.mark.parametrize(('width', 'height'), [(300, 200), (120, 170)])
def test_geometry_follows_a_mark_through_the_pipeline(width, height):
    """Resized and cropped by upstream's transforms, a mark lands where the geometry says."""
    place = np.array([width * 0.45, height * 0.6]).astype(int)
    image = np.zeros((height, width, 3), np.uint8)
    image[place[1] - 4 : place[1] + 5, place[0] - 4 : place[0] + 5] = 255
    results = {'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}
    for transform in (ResizeEdge(128, backend='pillow'), CenterCrop(112)):
        results = transform(results)
    geometry = ImageGeometry.of_sample(results)
    pixels = results['img'][..., 0].astype(float)
    y, x = (np.average(grid, weights=pixels) + 0.5 for grid in np.indices(pixels.shape))
    np.testing.assert_allclose(geometry.to_input(*(place + 0.5)), (x, y), atol=0.6)
    np.testing.assert_allclose(geometry.to_image(x, y), place + 0.5, atol=1.5)
    left, top, right, bottom = geometry.visible
    assert 0 <= left < place[0] < right <= width
    assert 0 <= top < place[1] < bottom <= height
    with pytest.raises(UserError, match='flips the image'):
        ImageGeometry.of_sample({**results, 'flip': True})


def test_attention_of_a_pixel_is_that_of_its_token():
    """Window, token and frame, also at the border where a window is cut."""
    windows = Windows(7, 1, 9, 12)  # 2 x 2 windows, stride 8
    logits = torch.randn(4, 2, 49, 49)
    layer = make_layer(logits, windows, stage=2)
    geometry = ImageGeometry((2.0, 2.0), (0.0, 0.0), (96, 72), (48, 36))  # enlarged twice
    for x, y in [(0, 0), (27, 0), (28, 0), (30, 33), (47, 35)]:
        found = attention_of_point(layer, (x, y), geometry)
        row, col = y * 2 // 8, x * 2 // 8
        shape = (7 if row < 7 else 2, 7 if col < 7 else 5)
        group, token = row // 7 * 2 + col // 7, row % 7 * shape[1] + col % 7
        expected = valid_pairs(logits, windows)[group].softmax(-1)[:, token].view(2, *shape)
        np.testing.assert_allclose(found.weights, expected, rtol=1e-5, atol=1e-7)
        left, top = col // 7 * 28, row // 7 * 28
        assert found.box == (left, top, left + shape[1] * 4, top + shape[0] * 4)
