"""The built-in Shapes data."""

from .shapes import (
    CLASSES,
    SEGMENTATION_CLASSES,
    Scene,
    ShapesSpec,
    draw_sample,
    draw_scene,
    visible_polygons,
    write_shapes,
)

__all__ = [
    'CLASSES',
    'SEGMENTATION_CLASSES',
    'Scene',
    'ShapesSpec',
    'draw_sample',
    'draw_scene',
    'visible_polygons',
    'write_shapes',
]
