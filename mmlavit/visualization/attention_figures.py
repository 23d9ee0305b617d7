"""Figures of what is measured on attention maps and transforms."""

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .attention_measures import AttentionReport

__all__ = ['draw_reports']

COLORS = ('#0072B2', '#D55E00')  # distinct for all kinds of color vision
MOST_LABELS = 16
MOST_VALUES = 6

Panel = tuple[str, np.ndarray] | None  # title and matrix


def draw_reports(reports: Mapping[str, AttentionReport]) -> dict[str, Figure]:
    """Draw what is measured over the layers, and the transforms.

    Args:
        reports: Of one or two models, by label.

    Returns:
        Figures by file name; none of what the models do not have.
    """
    names = {'diagonality': 'diagonality term', 'symmetry': 'symmetry term'}
    figures = {'diagonality.png': _draw_curves(reports, names)}
    figures['entropy.png'] = _draw_curves(reports, {'entropy': 'entropy of attention'})
    stages = sorted({m for r in reports.values() for m, s in r.similarity.items() if len(s) > 1})
    if stages:
        names = {'similarity_to_previous': 'similarity to layer before'}
        figures['saturation.png'] = _draw_curves(reports, names, from_zero=False)
        rows: list[list[Panel]] = [
            [(f'{k}, stage {m}', r.similarity[m]) if m in r.similarity else None for m in stages]
            for k, r in reports.items()
        ]
        lowest = min(float(panel[1].min()) for row in rows for panel in row if panel)
        scale = {'cmap': 'viridis', 'vmin': min(np.floor(lowest * 10) / 10, 0.9), 'vmax': 1}
        title = 'cosine similarity of attention'
        figures['similarity.png'] = _draw_matrices(rows, 'layer', title, **scale)
    less = {label: report for label, report in reports.items() if report.transforms}
    if less:
        names = {f'{n}_distance': rf'$\{n.title()}$, distance from $I$' for n in ('theta', 'psi')}
        figures['transforms.png'] = _draw_curves(less, names)
    for suffix, report in zip(('', '_second'), reports.values(), strict=False):
        for m in dict.fromkeys(stage for stage, _ in report.transforms):
            pairs = {
                layer: pair for (stage, layer), pair in report.transforms.items() if stage == m
            }
            rows = [
                [(rf'$\{name} - I$, layer {layer}', pair[i]) for layer, pair in pairs.items()]
                for i, name in enumerate(('Theta', 'Psi'))
            ]
            # transforms that have not moved are all 0
            highest = max(float(np.abs(pair).max()) for pair in pairs.values()) or 1.0
            scale = {'cmap': 'RdBu_r', 'vmin': -highest, 'vmax': highest}
            name = f'transforms_stage{m}{suffix}.png'
            figures[name] = _draw_matrices(rows, 'token', 'weight', **scale)
    return figures


def _draw_matrices(rows: Sequence[Sequence[Panel]], name: str, label: str, **scale: Any) -> Figure:
    """Matrices over layers or over the tokens of a window, on one color scale."""
    height, width = len(rows), len(rows[0])
    figure = Figure(figsize=(1.9 * width + 1.2, 2.1 * height + 0.2), layout='compressed')
    axes = figure.subplots(height, width, squeeze=False)
    shown: Any = None
    for axis, panel in zip(axes.flat, [panel for row in rows for panel in row], strict=True):
        if panel is None:
            axis.set_axis_off()
            continue
        title, matrix = panel
        n = len(matrix)
        # layers count from 1; a tick of tokens starts a row of the window
        first, step = (1, 1 + n // 10) if name == 'layer' else (0, round(n**0.5))
        start, end = first - 0.5, first + n - 0.5
        extent = (start, end, end, start)
        shown = axis.imshow(matrix, extent=extent, interpolation='nearest', **scale)
        ticks = range(first, first + n, step)
        axis.set(xticks=ticks, yticks=ticks)
        axis.tick_params(labelsize=6.5)
        axis.set_title(title, fontsize=8)
        axis.set_xlabel(name, fontsize=8)
        axis.set_ylabel(name, fontsize=8)
        if n <= MOST_VALUES:
            for (y, x), value in np.ndenumerate(matrix):
                color = 'white' if shown.norm(value) < 0.6 else 'black'
                text = dict(ha='center', va='center', fontsize=7, color=color)
                axis.text(first + x, first + y, f'{value:.2f}', **text)
    bar = figure.colorbar(shown, ax=axes, aspect=25, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _draw_curves(
    reports: Mapping[str, AttentionReport], names: Mapping[str, str], from_zero: bool = True
) -> Figure:
    """Measures over the layers, a panel for each, one line a stage; VA has open markers."""
    rows = [row for report in reports.values() for row in report.layers if {*names} & {*row}]
    places = sorted({(row['stage'], row['layer']) for row in rows})
    size = (max(3.6, 0.24 * len(places) + 1.8), 1.7 * len(names) + 0.5)
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for color, report in zip(COLORS, reports.values(), strict=False):
            measured = [row for row in report.layers if name in row]
            for _, group in groupby(measured, key=lambda row: row['stage']):
                layers = list(group)
                x = [places.index((row['stage'], row['layer'])) for row in layers]
                y = [row[name] for row in layers]
                faces = ['white' if row['kind'] == 'VA' else color for row in layers]
                axis.plot(x, y, color=color, linewidth=1.2, zorder=1)
                axis.scatter(x, y, 16, faces, edgecolors=color, clip_on=False, zorder=2)
        for i, (before, place) in enumerate(pairwise(places)):
            if before[0] != place[0]:
                axis.axvline(i + 0.5, color='0.85', linewidth=0.8, zorder=0)
        axis.margins(y=0.12)
        if from_zero:
            axis.set_ylim(bottom=0)
        axis.set_ylabel(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[['top', 'right']].set_visible(False)
    marker: dict[str, Any] = {'marker': 'o', 'markersize': 4, 'linewidth': 1.2}
    handles = [
        Line2D([], [], color=color, label=label, **marker)
        for color, label in zip(COLORS, reports, strict=False)
    ]
    if len({row['kind'] for row in rows}) > 1:
        for kind, face in (('VA', 'white'), ('LA', '0.4')):
            style = marker | {'linewidth': 0, 'markerfacecolor': face}
            handles.append(Line2D([], [], color='0.4', label=kind, **style))
    figure.legend(handles=handles, loc='outside upper center', ncols=4, fontsize=7, frameon=False)
    ticks = range(0, len(places), 1 + (len(places) - 1) // MOST_LABELS)
    axes[-1].set_xticks(ticks, ['{}.{}'.format(*places[i]) for i in ticks])
    axes[-1].set_xlabel('stage.layer', fontsize=8)
    axes[-1].set_xlim(-0.6, len(places) - 0.4)
    return figure
