"""Figures from arrays: matplotlib objects, no state of pyplot.

No name of a class is drawn: those stand in the page's text, in every script, where they can be read and searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours without yellow, which is too light on white.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#000000')
_GREY, _NO_CLASS = '#c8c8c8', '#808080'
# matplotlib's marker and the same shape as an SVG path in a box of 12×12.
_SHAPES = (
    ('o', 'M6 1a5 5 0 1 0 0 10a5 5 0 1 0 0-10z'),
    ('s', 'M1.5 1.5h9v9h-9z'),
    ('^', 'M6 1L11.5 11H.5z'),
    ('D', 'M6 .5L11.5 6L6 11.5L.5 6z'),
    ('v', 'M.5 1h11L6 11z'),
    ('P', 'M4 .5h4v3.5h3.5v4H8v3.5H4V8H.5V4H4z'),
)
STYLES = len(COLOURS) * len(_SHAPES)  # that differ in colour or shape
_MOST_VALUES = 400  # of a curve; more are averaged in bins


class Style(NamedTuple):
    """How the points of a class are drawn, by colour and shape: never by colour alone."""

    colour: str
    marker: str  # matplotlib's
    path: str  # SVG, in a box of 12×12


def style(index: int) -> Style:
    """Of the index-th class; after `STYLES` classes they repeat."""
    return Style(COLOURS[index % len(COLOURS)], *_SHAPES[index % len(_SHAPES)])


def curves(series: Mapping[str, tuple[np.ndarray, np.ndarray]], unit: str, *, named: bool) -> Figure:
    """Values against training steps.

    Args:
        series: label → (steps [n], values [n]).
        unit: of the values.
        named: whether there is a legend.
    """
    figure, axes = _figure(4.2, 2.8)
    for number, (label, (steps, values)) in enumerate(series.items()):
        x, y = averaged(steps, values)
        marker = 'o' if len(x) < 25 else ''
        axes.plot(
            x,
            y,
            color=COLOURS[number % len(COLOURS)],
            linestyle=('-', '--', ':')[number % 3],
            marker=marker,
            markersize=3,
            linewidth=1.6,
            label=label,
        )
    axes.set_xlabel('training step')
    axes.set_ylabel(unit)
    axes.grid(color='#e6e6e6', linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    if named:
        figure.legend(loc='outside upper left', ncols=len(series), frameon=False, fontsize=9)
    return figure


def averaged(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps [n] and values [n], averaged in equal bins where there are more than a curve can show."""
    if len(values) <= _MOST_VALUES:
        return steps, values
    bins = np.array_split(np.arange(len(values)), _MOST_VALUES)
    return np.array([steps[b].mean() for b in bins]), np.array([values[b].mean() for b in bins])


def embedding_map(points: np.ndarray, coarse: np.ndarray, weights: np.ndarray | None, owners: np.ndarray) -> Figure:
    """All points by coarse class, the class weights as stars.

    Args:
        points: [n, 2].
        coarse: int [n].
        weights: [C, 2], or None.
        owners: int [C], the coarse class of each weight, −1 where unknown.
    """
    figure, axes = _figure(6.4, 6.4)
    size = float(np.clip(12000 / len(points), 5, 60))
    for label in np.unique(coarse):
        look = style(label)
        chosen = points[coarse == label]
        axes.scatter(*chosen.T, s=size, c=look.colour, marker=look.marker, alpha=0.65, linewidths=0)
    if weights is not None:
        colours = [style(owner).colour if owner >= 0 else _NO_CLASS for owner in owners]
        axes.scatter(*weights.T, s=260, c='white', marker='*', linewidths=3.5, edgecolors='white', zorder=3)
        axes.scatter(*weights.T, s=240, c=colours, marker='*', linewidths=1.1, edgecolors='black', zorder=4)
    everything = points if weights is None else np.concatenate([points, weights])
    _as_map(axes, everything.min(axis=0), everything.max(axis=0))
    return figure


def class_map(
    points: np.ndarray,
    shown: np.ndarray,
    labels: np.ndarray,
    medians: Mapping[int, np.ndarray],
    weights: Mapping[int, np.ndarray],
) -> Figure:
    """One coarse class: its points by fine class, an arrow from the class weight to the median of each fine class.

    Args:
        points: [n, 2], of all classes; those of others are grey.
        shown: bool [n], the points of this class.
        labels: int [n], the number of the style of each point of this class.
        medians: number → [2].
        weights: number → [2], where the arrow to that median begins; may be empty.
    """
    figure, axes = _figure(3.6, 3.6)
    axes.scatter(*points[~shown].T, s=2, c=_GREY, linewidths=0)
    size = float(np.clip(3000 / max(shown.sum(), 1), 8, 26))
    for number in medians:
        look = style(number)
        chosen = points[shown & (labels == number)]
        axes.scatter(*chosen.T, s=size, c=look.colour, marker=look.marker, alpha=0.55, linewidths=0)
    for number, median in medians.items():
        look = style(number)
        if number in weights:
            axes.annotate(
                '',
                median,
                weights[number],
                zorder=4,
                arrowprops={'arrowstyle': '-|>', 'color': '#1c1c1c', 'linewidth': 1.2, 'shrinkA': 0, 'shrinkB': 4},
            )
        axes.scatter(*median, s=70, c=look.colour, marker=look.marker, linewidths=1.4, edgecolors='black', zorder=5)
    for place in {tuple(place): place for place in weights.values()}.values():
        axes.scatter(*place, s=300, c='white', marker='*', linewidths=1.4, edgecolors='black', zorder=6)
    # Without the outermost points, which would make all others small.
    corners = np.stack([*np.percentile(points[shown], [2, 98], axis=0), *medians.values(), *weights.values()])
    _as_map(axes, corners.min(axis=0), corners.max(axis=0))
    return figure


def angle_histogram(own: np.ndarray, other: np.ndarray) -> Figure:
    """Degrees to the own class weight [n] and to the nearest other one [m], with their medians."""
    figure, axes = _figure(5.2, 3.2)
    everything = np.concatenate([own, other])
    bins = np.linspace(np.floor(everything.min()), np.ceil(everything.max()) + 1e-6, 61)
    for values, label, colour, line in (
        (own, 'own class', COLOURS[0], '-'),
        (other, 'nearest other class', COLOURS[1], '--'),
    ):
        if len(values):
            axes.hist(values, bins, histtype='stepfilled', color=colour, alpha=0.35)
            axes.hist(values, bins, histtype='step', color=colour, linestyle=line, linewidth=1.6, label=label)
            axes.axvline(float(np.median(values)), color=colour, linestyle=line, linewidth=1)
    axes.set_xlabel('angle between embedding and class weight, degrees')
    axes.set_ylabel('test images')
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside upper left', ncols=2, frameon=False)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    """An empty figure, in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.add_subplot()


def _as_map(axes: Any, low: np.ndarray, high: np.ndarray) -> None:
    """A square around two corners [2], [2]; distances count, coordinates do not."""
    middle, half = (low + high) / 2, max(0.54 * float((high - low).max()), 1e-3)
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)
    axes.set_aspect('equal')
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color('#d0d0d0')
