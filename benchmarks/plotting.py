"""The plot of benchmarks/speed.py."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import Row
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw speed and memory over Swin-T, one group of bars a size.

    Args:
        rows: Those of the backbones.
        path: PNG file to write.
    """
    panels = {
        'images/s over Swin-T, forward': lambda row: row['forward']['speed_over_swin']['median'],
        'images/s over Swin-T, training': lambda row: row['training']['speed_over_swin']['median'],
        'training memory over Swin-T': lambda row: row['memory_over_swin'] or np.nan,
    }
    keys = ('forward', 'training', 'memory_over_swin')
    drawn = [
        (title, value, [row for row in rows if key in row])
        for (title, value), key in zip(panels.items(), keys, strict=True)
    ]
    drawn = [panel for panel in drawn if panel[2]]
    sizes = list(dict.fromkeys(row['size'] for row in rows))
    names = list(dict.fromkeys(row['model'] for row in rows))
    # not through pyplot: no display, no state
    figure = Figure(figsize=(5.5 * len(drawn), 4.2), layout='constrained')
    axes = figure.subplots(1, len(drawn), squeeze=False)
    for axis, (title, value, shown) in zip(axes[0], drawn, strict=True):
        for row in shown:
            place = names.index(row['model'])
            axis.bar(
                sizes.index(row['size']) + (place - (len(names) - 1) / 2) * 0.8 / len(names),
                value(row),
                0.8 / len(names),
                color=f'C{place}',
            )
        axis.axhline(1, color='black', linewidth=0.8)
        axis.set_xticks(range(len(sizes)), sizes)
        axis.set_title(title)
    handles = [Rectangle((0, 0), 1, 1, color=f'C{i}') for i in range(len(names))]
    figure.legend(
        handles, names, loc='outside lower center', ncols=min(len(names), 2 * len(drawn) + 1)
    )
    figure.savefig(path, dpi=120, format='png')
