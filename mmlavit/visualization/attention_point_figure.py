"""What one pixel attends to, as a figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .attention_maps import Box, PointAttention

__all__ = ['draw_attention']

COLORMAP = 'inferno'
PANEL = 1.2  # inches
CROSS = '#00E5FF'


def draw_attention(
    image: np.ndarray, point: tuple[int, int], layers: Sequence[PointAttention], visible: Box
) -> Figure:
    """Draw the attention of one pixel in each layer (rows) and head (columns) of a stage.

    Args:
        image: RGB, shape (height, width, 3).
        point: The pixel (x, y).
        layers: Its attention, in the order of the layers.
        visible: What the model sees of the image.
    """
    maps = [layer.weights for layer in layers]  # (heads, rows, cols)
    titles = [f'head {i + 1}' for i in range(len(maps[0]))]
    if len(titles) > 1:
        titles = ['mean of heads', *titles]
        maps = [np.concatenate([heads.mean(0, keepdims=True), heads]) for heads in maps]
    # small shares stay visible beside a peak: color goes with the square root
    norm = PowerNorm(0.5, 0, max(float(heads.max()) for heads in maps))
    left, top, right, bottom = box = layers[0].box
    # the window with half its size around it, inside what the model sees
    dx, dy = (right - left) / 2, (bottom - top) / 2
    view = (
        *(max(left - dx, visible[0]), max(top - dy, visible[1])),
        *(min(right + dx, visible[2]), min(bottom + dy, visible[3])),
    )
    aspect = (view[3] - view[1]) / (view[2] - view[0])
    size = (PANEL * (len(titles) + 1) + 0.9, PANEL * aspect * len(layers) + 0.4)
    figure = Figure(figsize=size, layout='compressed')
    axes = figure.subplots(len(layers), len(titles) + 1, squeeze=False)
    extent = (0, image.shape[1], image.shape[0], 0)  # pixels end at whole numbers

    axes[0, 0].imshow(image, extent=extent)
    _frame(axes[0, 0], box, point, visible)
    for axis in axes[1:, 0]:
        axis.set_axis_off()
    for row, layer, heads in zip(axes[:, 1:], layers, maps, strict=True):
        row[0].set_ylabel(f'layer {layer.layer.layer} ({layer.layer.kind})', fontsize=8)
        for axis, weights in zip(row, heads, strict=True):
            axis.imshow(image.mean(-1) * 0.8, cmap='gray', vmin=0, vmax=255, extent=extent)
            over = {'extent': (left, right, bottom, top), 'interpolation': 'bilinear', 'alpha': 0.6}
            axis.imshow(weights, cmap=COLORMAP, norm=norm, **over)
            _frame(axis, box, point, view)
    for axis, title in zip(axes[0], [f'stage {layers[0].layer.stage}', *titles], strict=True):
        axis.set_title(title, fontsize=8)
    length = min(len(layers), 4)  # panels
    place: dict[str, Any] = {'shrink': length / len(layers), 'aspect': 10 * length}
    bar = figure.colorbar(ScalarMappable(norm, COLORMAP), ax=axes, anchor=(0, 1), pad=0.01, **place)
    bar.ax.tick_params(labelsize=7)
    bar.set_label('attention', fontsize=8)
    return figure


def _frame(axis: Axes, box: Box, point: tuple[int, int], view: Box) -> None:
    width, height = box[2] - box[0], box[3] - box[1]
    axis.add_patch(Rectangle(box[:2], width, height, fill=False, edgecolor='white', linewidth=1))
    axis.plot(point[0] + 0.5, point[1] + 0.5, '+', color=CROSS, markersize=6, markeredgewidth=1.2)
    axis.set(xlim=(view[0], view[2]), ylim=(view[3], view[1]), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
