"""Figures of what is measured on attention maps and transforms."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from .attention_report import AttentionReport, Place

__all__ = ['draw_reports']

COLORS = ('#0072B2', '#D55E00')  # distinct for all kinds of color vision
MOST_LABELS = 16
MOST_VALUES = 6

Curve = Mapping[Place, float]


def draw_reports(reports: Mapping[str, AttentionReport]) -> dict[str, Figure]:
    """Draw what is measured over the layers, and the transforms.

    Args:
        reports: Of one or two models, by label.

    Returns:
        Figures by file name; none of what the models do not have.
    """
    kinds = {label: report.kinds for label, report in reports.items()}
    terms = {
        'diagonality term': {label: report.diagonality for label, report in reports.items()},
        'symmetry term': {label: report.symmetry for label, report in reports.items()},
    }
    figures = {'diagonality.png': _draw_curves(terms, kinds)}
    curves = {label: report.saturation for label, report in reports.items()}
    if any(curves.values()):
        panels = {'similarity to layer before': curves}
        figures['saturation.png'] = _draw_curves(panels, kinds, from_zero=False)
        figures['similarity.png'] = _draw_similarity(
            {label: report.matrices for label, report in reports.items()}
        )
    less = {label: report for label, report in reports.items() if report.theta}
    if less:
        distances = {
            r'$\Theta$, distance from $I$': {
                k: report.theta_distance for k, report in less.items()
            },
            r'$\Psi$, distance from $I$': {k: report.psi_distance for k, report in less.items()},
        }
        figures['transforms.png'] = _draw_curves(distances, {})
    for suffix, report in zip(('', '_second'), reports.values(), strict=False):
        for stage in sorted({stage for stage, _ in report.theta}):
            places = [place for place in report.theta if place[0] == stage]
            deviations = {
                r'$\Theta - I$': [report.theta[place] for place in places],
                r'$\Psi - I$': [report.psi[place] for place in places],
            }
            figures[f'transforms_stage{stage}{suffix}.png'] = _draw_transforms(
                deviations, [layer for _, layer in places]
            )
    return figures


def _draw_similarity(models: Mapping[str, Mapping[int, np.ndarray]]) -> Figure:
    """One matrix a stage (columns) and model (rows), on one color scale."""
    matrices = {
        (label, stage): matrix
        for label, of_model in models.items()
        for stage, matrix in of_model.items()
        if len(matrix) > 1
    }
    stages = sorted({stage for _, stage in matrices})
    lowest = np.floor(min(float(matrix.min()) for matrix in matrices.values()) * 10) / 10
    figure = Figure(figsize=(1.9 * len(stages) + 1.2, 2.1 * len(models) + 0.2), layout='compressed')
    axes = figure.subplots(len(models), len(stages), squeeze=False)
    shown = None
    for axis, (label, stage) in zip(axes.flat, product(models, stages), strict=True):
        matrix = matrices.get((label, stage))
        if matrix is None:
            axis.set_axis_off()
            continue
        shown = axis.imshow(matrix, cmap='viridis', vmin=min(lowest, 0.9), vmax=1)
        ticks = np.arange(0, len(matrix), 1 + len(matrix) // 10)
        axis.set_xticks(ticks, ticks + 1, fontsize=7)
        axis.set_yticks(ticks, ticks + 1, fontsize=7)
        axis.set_title(f'{label}, stage {stage}', fontsize=8)
        axis.set_xlabel('layer', fontsize=8)
        axis.set_ylabel('layer', fontsize=8)
        if len(matrix) <= MOST_VALUES:
            for y, x in np.ndindex(matrix.shape):
                color = 'white' if shown.norm(matrix[y, x]) < 0.6 else 'black'
                text = f'{matrix[y, x]:.2f}'
                axis.text(x, y, text, ha='center', va='center', fontsize=7, color=color)
    assert shown is not None
    _add_colorbar(figure, axes, shown, 'cosine similarity of attention')
    return figure


def _draw_curves(
    panels: Mapping[str, Mapping[str, Curve]],
    kinds: Mapping[str, Mapping[Place, str]],
    from_zero: bool = True,
) -> Figure:
    """Numbers over the layers, by label of the vertical axis and by label of the curve.

    Vanilla layers have open markers, for those labels whose kinds of layers are given.
    """
    places = sorted({p for curves in panels.values() for curve in curves.values() for p in curve})
    position = {place: i for i, place in enumerate(places)}
    figure = Figure(
        figsize=(max(3.6, 0.24 * len(places) + 1.8), 1.7 * len(panels) + 0.5), layout='constrained'
    )
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    used = set()
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for color, (label, curve) in zip(COLORS, curves.items(), strict=False):
            _draw_curve(axis, curve, position, color, kinds.get(label, {}))
            axis.plot([], [], 'o-', color=color, markersize=4, linewidth=1.2, label=label)
            used |= {kinds[label][place] for place in curve if label in kinds}
        for i, (before, place) in enumerate(zip(places, places[1:], strict=False)):
            if before[0] != place[0]:
                axis.axvline(i + 0.5, color='0.85', linewidth=0.8, zorder=0)
        axis.margins(y=0.12)
        if from_zero:
            axis.set_ylim(bottom=0)
        axis.set_ylabel(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[['top', 'right']].set_visible(False)
    if len(used) > 1:
        for kind, face in (('VA', 'white'), ('LA', '0.4')):
            axes[0].plot([], [], 'o', color='0.4', markersize=4, markerfacecolor=face, label=kind)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper center', ncols=4, fontsize=7, frameon=False)
    ticks = range(0, len(places), 1 + (len(places) - 1) // MOST_LABELS)
    axes[-1].set_xticks(ticks, ['{}.{}'.format(*places[i]) for i in ticks])
    axes[-1].set_xlabel('stage.layer', fontsize=8)
    axes[-1].set_xlim(-0.6, len(places) - 0.4)
    return figure


def _draw_curve(
    axis: Axes,
    curve: Curve,
    position: Mapping[Place, int],
    color: str,
    kinds: Mapping[Place, str],
) -> None:
    """One line a stage."""
    for stage in sorted({stage for stage, _ in curve}):
        places = sorted(place for place in curve if place[0] == stage)
        x, y = [position[place] for place in places], [curve[place] for place in places]
        axis.plot(x, y, color=color, linewidth=1.2, zorder=1)
    for place, value in curve.items():
        face = 'white' if kinds.get(place) == 'VA' else color
        axis.plot(
            position[place],
            value,
            'o',
            markersize=4,
            color=color,
            markerfacecolor=face,
            clip_on=False,
        )


def _draw_transforms(
    deviations: Mapping[str, Sequence[np.ndarray]], layers: Sequence[int]
) -> Figure:
    """Matrices (N, N) by label (rows) and layer (columns), on one color scale."""
    # transforms that have not moved are all 0
    highest = max(float(np.abs(m).max()) for ms in deviations.values() for m in ms) or 1.0
    window = round(len(next(iter(deviations.values()))[0]) ** 0.5)
    figure = Figure(
        figsize=(1.75 * len(layers) + 1.4, 1.75 * len(deviations) + 0.4), layout='compressed'
    )
    axes = figure.subplots(len(deviations), len(layers), squeeze=False, sharex=True, sharey=True)
    shown = None
    for row, (label, matrices) in zip(axes, deviations.items(), strict=True):
        for axis, matrix, layer in zip(row, matrices, layers, strict=True):
            shown = axis.imshow(
                matrix, cmap='RdBu_r', vmin=-highest, vmax=highest, interpolation='nearest'
            )
            # a tick starts a row of the window
            axis.xaxis.set_major_locator(MultipleLocator(window))
            axis.yaxis.set_major_locator(MultipleLocator(window))
            axis.tick_params(labelsize=6)
            axis.set_title(f'{label}, layer {layer}', fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel('token', fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel('token', fontsize=8)
    assert shown is not None
    _add_colorbar(figure, axes, shown, 'weight')
    return figure


def _add_colorbar(figure: Figure, axes: Any, shown: Any, label: str) -> None:
    bar = figure.colorbar(shown, ax=axes, aspect=25, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
