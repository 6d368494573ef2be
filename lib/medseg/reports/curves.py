"""Curves: quality over labels or rounds with a band over seeds, loss terms over iterations, costs over sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medseg.reports.style import colour, new_figure, plain_axes

Curve = Sequence[tuple[float, float]]
"""Points (x, y) in order."""


def learning_curves(curves: Mapping[str, Sequence[Curve]], x: str, y: str, title: str = "") -> Figure:
    """Mean and range of several runs of each group.

    Args:
        curves: name (strategy, arm) -> one curve per seed.
        x: name of the horizontal axis, with its unit.
        y: name of the vertical axis.
        title: over the plot.

    Returns:
        A line through the mean at each x, a band from the lowest to the highest seed, thin lines for the seeds.
    """
    figure, [[axes]] = new_figure(7.5, 4.2)
    for index, (name, runs) in enumerate(curves.items()):
        places, mean, low, high = band(runs)
        axes.plot(places, mean, "-o", color=colour(index), markersize=4, linewidth=1.8, label=name)
        if len(runs) > 1:
            axes.fill_between(places, low, high, color=colour(index), alpha=0.15, linewidth=0)
            for run in runs:
                axes.plot(*zip(*run, strict=True), color=colour(index), linewidth=0.6, alpha=0.5)
    plain_axes(axes, x, y, title)
    if all(float(place).is_integer() for runs in curves.values() for run in runs for place, _ in run):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def band(runs: Sequence[Curve]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Places, mean, lowest and highest value of several curves; a place counts the curves that have it."""
    values: dict[float, list[float]] = {}
    for run in runs:
        for place, value in run:
            values.setdefault(float(place), []).append(float(value))
    places = sorted(values)
    return (
        places,
        [float(np.mean(values[place])) for place in places],
        [min(values[place]) for place in places],
        [max(values[place]) for place in places],
    )


def training_curves(runs: Mapping[str, Mapping[str, Curve]], title: str = "") -> Figure:
    """One small plot per term (loss terms, validation quality), one line per run.

    Args:
        runs: run name -> term -> (iteration, value) points.
        title: over the whole figure.
    """
    terms = list(dict.fromkeys(term for run in runs.values() for term in run)) or ["loss"]
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    figure, grid = new_figure(3.6 * columns, 2.5 * rows + 0.4, rows, columns)
    cells = [axes for row in grid for axes in row]
    for axes, term in zip(cells, terms, strict=False):
        for index, (name, run) in enumerate(runs.items()):
            if run.get(term):
                marker = "o" if len(run[term]) == 1 else ""
                points = zip(*run[term], strict=True)
                axes.plot(*points, marker=marker, color=colour(index), lw=1.2, ms=4, label=name)
        plain_axes(axes, "iteration", "", term)
    for axes in cells[len(terms) :]:
        axes.set_visible(False)
    if len(runs) > 1:
        handles = {
            label: handle for axes in cells for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def scaling_curves(costs: Mapping[str, Mapping[str, Curve]], x: str) -> Figure:
    """Costs over the size of the work, one small plot per cost, one line per arm, both axes logarithmic.

    Args:
        costs: name of the cost -> arm -> (size, cost) points, all above 0.
        x: name of the horizontal axis.
    """
    figure, [row] = new_figure(3.8 * len(costs), 3.2, 1, len(costs))
    arms = list(dict.fromkeys(name for curves in costs.values() for name in curves))
    for axes, (cost, curves) in zip(row, costs.items(), strict=True):
        for name, curve in curves.items():
            points = [(size, value) for size, value in curve if size > 0 and value > 0]
            axes.plot(*zip(*points, strict=True), marker="o", ms=4, lw=1.5, color=colour(arms.index(name)), label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        sizes = sorted({size for curve in curves.values() for size, _ in curve})
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.minorticks_off()
        plain_axes(axes, x, "", cost)
    if len(arms) > 1:
        row[0].legend(frameon=False, fontsize=9)
    return figure
