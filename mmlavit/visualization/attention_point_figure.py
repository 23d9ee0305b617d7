"""What one pixel attends to, as a figure."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .attention_windows import Box, PointAttention

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
    heads = len(layers[0].weights)
    titles = [f'head {i}' for i in range(1, heads + 1)]
    maps = [list(layer.weights) for layer in layers]
    if heads > 1:
        titles = ['mean of heads', *titles]
        maps = [[np.mean(row, axis=0), *row] for row in maps]
    # small shares stay visible beside a peak: color goes with the square root
    norm = PowerNorm(0.5, 0, max(float(weights.max()) for row in maps for weights in row))
    box = layers[0].box
    view = _around(box, visible)
    aspect = (view[3] - view[1]) / (view[2] - view[0])
    figure = Figure(
        figsize=(PANEL * (len(titles) + 1) + 0.9, PANEL * aspect * len(layers) + 0.4),
        layout='compressed',
    )
    axes = figure.subplots(len(layers), len(titles) + 1, squeeze=False)
    extent = (0, image.shape[1], image.shape[0], 0)  # pixels end at whole numbers

    axes[0, 0].imshow(image, extent=extent)
    axes[0, 0].set_title(f'stage {layers[0].layer.stage}', fontsize=8)
    _frame(axes[0, 0], box, point, visible)
    for axis in axes[1:, 0]:
        axis.set_axis_off()
    for row, layer, weights_of in zip(axes[:, 1:], layers, maps, strict=True):
        row[0].set_ylabel(f'layer {layer.layer.layer} ({layer.layer.kind})', fontsize=8)
        for axis, weights in zip(row, weights_of, strict=True):
            axis.imshow(image.mean(-1) * 0.8, cmap='gray', vmin=0, vmax=255, extent=extent)
            axis.imshow(
                weights,
                extent=(box[0], box[2], box[3], box[1]),
                interpolation='bilinear',
                cmap=COLORMAP,
                norm=norm,
                alpha=0.6,
            )
            _frame(axis, box, point, view)
    for axis, title in zip(axes[0, 1:], titles, strict=True):
        axis.set_title(title, fontsize=8)
    length = min(len(layers), 4)  # panels
    bar = figure.colorbar(
        ScalarMappable(norm, COLORMAP),
        ax=axes,
        shrink=length / len(layers),
        anchor=(0, 1),
        aspect=10 * length,
        pad=0.01,
    )
    bar.ax.tick_params(labelsize=7)
    bar.set_label('attention', fontsize=8)
    return figure


def _around(box: Box, visible: Box) -> Box:
    """A window with half its size around it, inside what the model sees."""
    dx, dy = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    return (
        max(box[0] - dx, visible[0]),
        max(box[1] - dy, visible[1]),
        min(box[2] + dx, visible[2]),
        min(box[3] + dy, visible[3]),
    )


def _frame(axis: Axes, box: Box, point: tuple[int, int], view: Box) -> None:
    width, height = box[2] - box[0], box[3] - box[1]
    axis.add_patch(Rectangle(box[:2], width, height, fill=False, edgecolor='white', linewidth=1))
    axis.plot(point[0] + 0.5, point[1] + 0.5, '+', color=CROSS, markersize=6, markeredgewidth=1.2)
    axis.set_xlim(view[0], view[2])
    axis.set_ylim(view[3], view[1])
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
