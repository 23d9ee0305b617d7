"""What the tests share."""

from pathlib import Path

import pytest

from mmlavit.datasets import ShapesSpec, write_shapes

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of Shapes: a handful of images a split."""
    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_shapes(root, ShapesSpec(num_classification=(6, 3), num_scenes=(4, 2)))
    return root
