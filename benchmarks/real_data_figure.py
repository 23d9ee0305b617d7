"""Curves of training, a line a model and a band over its seeds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import Row
from matplotlib.figure import Figure


def draw_curves(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw the metric on the held-out images over epochs or iterations."""
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.add_subplot(xlabel='epoch or iteration', ylabel=title)
    for name in dict.fromkeys(row['model'] for row in rows):
        # the steps of a run that was read from JSON are strings
        curves = [
            {int(step): value for step, value in row['curve'].items()}
            for row in rows
            if row['model'] == name
        ]
        # a detector that found nothing has no figure for that epoch
        steps = [step for step in curves[0] if all(step in curve for curve in curves)]
        values = np.array([[curve[step] for step in steps] for curve in curves])
        (line,) = axes.plot(steps, values.mean(0), label=name)
        axes.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
