"""What a simulation found, as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from medseg.methods import method_class
from medseg.simulation.request import SimulationRequest
from medseg.simulation.roles import Roles


def area_under(points: Sequence[tuple[float, float]]) -> float:
    """Area under a learning curve by trapezoids, divided by its width: the mean quality over the labels.

    Args:
        points: (labels, quality), in order of the labels. One point gives its quality.
    """
    width = points[-1][0] - points[0][0]
    if width == 0:
        return points[-1][1]
    return sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in pairwise(points)) / width


def summarise(
    request: SimulationRequest, roles: Roles, labels: Mapping[str, int], curves: Mapping[tuple[str, int], Any]
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        request: what was asked.
        roles: who was tested, validated and labelled.
        labels: label name -> index.
        curves: (strategy, seed) -> finished rounds.
    """
    listed = [
        {"strategy": strategy, "seed": seed, "area": area_under(learning_points(rounds)), "rounds": rounds}
        for (strategy, seed), rounds in curves.items()
    ]
    return {
        "method": request.method,
        "metric": method_class(request.method).metric,
        "labels": dict(labels),
        "request": {**request.identity(), "rounds": request.rounds, "seeds": request.seeds},
        "cases": {role: [case.id for case in getattr(roles, role)] for role in ("test", "validation", "pool")},
        "strategies": {name: _strategy([c for c in listed if c["strategy"] == name]) for name, _ in curves},
        "curves": listed,
    }


def learning_points(rounds: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(labels, mean quality on the test cases) of each round."""
    return [(float(entry["labels"]), float(entry["test"]["quality"])) for entry in rounds]


def _strategy(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    areas = [curve["area"] for curve in curves]
    finals = [curve["rounds"][-1]["test"]["quality"] for curve in curves]
    return {"area": _spread(areas), "final": _spread(finals), "seeds": len(curves)}


def _spread(values: Sequence[float]) -> dict[str, float]:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": sd}
