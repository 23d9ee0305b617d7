"""Curves of training, a line a model and a band over its seeds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import Row
from matplotlib.figure import Figure


def draw_curves(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw the metric on the held-out images over epochs or iterations."""
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.add_subplot(xlabel='epoch', ylabel=title)
    for name in dict.fromkeys(row['model'] for row in rows):
        curves = [row['curve'] for row in rows if row['model'] == name]
        steps = [int(step) for step in curves[0]]
        values = np.array([list(curve.values()) for curve in curves])
        (line,) = axes.plot(steps, values.mean(0), label=name)
        axes.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
