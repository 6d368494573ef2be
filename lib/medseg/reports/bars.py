"""Comparison of arms: the mean of each with its spread over seeds, and every case as a dot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medseg.reports.style import INK, colour, new_figure, plain_axes


@dataclass(frozen=True)
class Column:
    """One arm: mean over cases and seeds, standard deviation over seeds, and the value of each case."""

    mean: float
    sd: float = 0.0
    cases: Mapping[str, float] = field(default_factory=dict)


def compare_arms(arms: Mapping[str, Column], metric: str, unit: str = "", higher_is_better: bool = True) -> Figure:
    """Draw the arms side by side.

    Args:
        arms: name -> column, in the order of drawing.
        metric: name of the value.
        unit: its unit; empty for shares.
        higher_is_better: told at the axis.

    Returns:
        Per arm a line at the mean with its number, a whisker of one standard deviation over seeds to both sides, and a
        dot per case; dots of one case are joined by a thin line when there are at most 40 cases.
    """
    figure, [[axes]] = new_figure(max(5.0, 1.7 * len(arms) + 1.5), 4.4)
    offsets = _offsets(arms)
    for index, arm in enumerate(arms.values()):
        axes.hlines(arm.mean, index - 0.31, index + 0.31, color=colour(index), linewidth=3, alpha=0.75)
        if arm.sd > 0:
            axes.errorbar(index, arm.mean, yerr=arm.sd, color=INK, capsize=4, linewidth=1.4)
        places = [index + offsets[case] for case in arm.cases]
        axes.scatter(places, list(arm.cases.values()), s=14, color=colour(index), alpha=0.85, linewidths=0, zorder=3)
        axes.annotate(
            f"{arm.mean:.4g}",
            (index - 0.31, arm.mean),
            xytext=(2, 3),
            textcoords="offset points",
            fontsize=9,
            color=INK,
        )
    _join_cases(axes, arms, offsets)
    direction = "higher is better" if higher_is_better else "lower is better"
    plain_axes(axes, "", f"{metric}{f' [{unit}]' if unit else ''} ({direction})")
    axes.set_xticks(range(len(arms)), list(arms))
    axes.set_xlim(-0.6, len(arms) - 0.4)
    return figure


def _offsets(arms: Mapping[str, Column]) -> dict[str, float]:
    """A fixed sideways place for each case, the same in all arms."""
    cases = list(dict.fromkeys(case for arm in arms.values() for case in arm.cases))
    spread = np.linspace(-0.2, 0.2, len(cases)) if len(cases) > 1 else np.zeros(1)
    return dict(zip(cases, np.random.default_rng(0).permutation(spread), strict=False))


def _join_cases(axes: Axes, arms: Mapping[str, Column], offsets: Mapping[str, float]) -> None:
    if len(offsets) > 40:
        return
    columns = list(arms.values())
    for case, offset in offsets.items():
        values = [column.cases.get(case, np.nan) for column in columns]
        axes.plot(
            [i + offset for i in range(len(columns))], values, color="#999999", linewidth=0.5, alpha=0.5, zorder=1
        )
