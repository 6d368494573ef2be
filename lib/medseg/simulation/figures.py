"""The plots of a simulation. The strategy `random` is grey in all of them: it is what the others must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medseg.reports.curves import band
from medseg.reports.style import colour, new_figure, plain_axes
from medseg.simulation.summary import learning_points

BASELINE = "random"
GREY = "#888888"


def learning_figure(curves: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Test quality over labels: per strategy the mean over seeds, a band from the lowest to the highest, thin seeds."""
    figure, [[axes]] = new_figure(7.5, 4.2)
    for strategy, ink in strategy_colours(curves).items():
        runs = [learning_points(curve["rounds"]) for curve in curves if curve["strategy"] == strategy]
        places, mean, low, high = band(runs)
        axes.plot(places, mean, "-o", color=ink, markersize=4, linewidth=1.8, label=strategy)
        if len(runs) > 1:
            axes.fill_between(places, low, high, color=ink, alpha=0.15, linewidth=0)
            for run in runs:
                axes.plot(*zip(*run, strict=True), color=ink, linewidth=0.6, alpha=0.5)
    plain_axes(axes, "labelled training images", f"{metric} on the test cases")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    return figure


def staircase(curves: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Validation quality of the published model as steps over the rounds, and of every candidate as a dot."""
    figure, [[axes]] = new_figure(7.5, 4.2)
    inks = strategy_colours(curves)
    for curve in curves:
        rounds = [entry["round"] for entry in curve["rounds"]]
        served = [entry["validation"]["champion"] for entry in curve["rounds"]]
        ink, style = inks[curve["strategy"]], ("-", "--", ":", "-.")[curve["seed"] % 4]
        name = f"{curve['strategy']}, seed {curve['seed']}"
        steps = ([*rounds, rounds[-1] + 0.5], [*served, served[-1]])
        axes.step(*steps, where="post", color=ink, linestyle=style, linewidth=1.8, label=name)
        _draw_candidates(axes, curve["rounds"], ink)
    plain_axes(axes, "round", f"{metric} on the validation cases")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    return figure


def strategy_colours(curves: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Strategy -> colour, in order of appearance."""
    names = list(dict.fromkeys(curve["strategy"] for curve in curves))
    others = [name for name in names if name != BASELINE]
    return {name: GREY if name == BASELINE else colour(others.index(name)) for name in names}


def _draw_candidates(axes: Axes, rounds: Sequence[Mapping[str, Any]], ink: str) -> None:
    for published in (True, False):
        dots = [
            (entry["round"], entry["validation"]["candidate"])
            for entry in rounds
            if entry["published"] is published and entry["validation"]["candidate"] is not None
        ]
        if dots:
            x, y = zip(*dots, strict=True)
            axes.scatter(x, y, s=28, facecolors=ink if published else "none", edgecolors=ink, zorder=3)
