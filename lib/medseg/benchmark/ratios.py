"""Ratios of two arms, where the question is how many times as good one is, or what share of another it reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medseg.methods.base import ArmGroup
from medseg.metrics.statistics import bootstrap_ratio

Tables = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Arm -> case -> metric -> value, mean over seeds."""


def arm_ratios(group: ArmGroup, tables: Tables) -> list[dict[str, Any]]:
    """The ratios that a group declares, of those arms that have results.

    Returns:
        For each `arm`, `to`, `metric`, `ratio` of the means over the `cases` that both have, and `ci95`, a bootstrap
        interval over these cases. None stands for what is infinite: a mean of 0 below.
    """
    found = []
    for above, below, *metric in group.ratios:
        key = metric[0] if metric else group.metric
        one, two = (_values(tables.get(arm, {}), key) for arm in (above, below))
        common = [case for case in one if case in two]
        if common:
            ratio, low, high = bootstrap_ratio([one[case] for case in common], [two[case] for case in common])
            ends = [_finite(low), _finite(high)]
            entry = {"arm": above, "to": below, "metric": key, "ratio": _finite(ratio), "ci95": ends}
            found.append({**entry, "cases": len(common)})
    return found


def mean_over_seeds(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Case -> metric -> mean over the seeds that have it, from one table for each seed."""
    values: dict[str, dict[str, list[float]]] = {}
    for table in seeds:
        for case, metrics in table.items():
            for key, value in metrics.items():
                values.setdefault(case, {}).setdefault(key, []).append(value)
    return {case: {key: sum(v) / len(v) for key, v in metrics.items()} for case, metrics in values.items()}


def _values(table: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, float]:
    return {case: metrics[metric] for case, metrics in table.items() if metric in metrics}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
