"""The built-in Shapes data."""

from .shapes import ShapesSpec, write_shapes

__all__ = ['ShapesSpec', 'write_shapes']
