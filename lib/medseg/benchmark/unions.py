"""Figures of the parts of a union: each data set or domain (`Method.group_cases`) by itself, and all counted alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def summarise_groups(by_seed: Mapping[str, Mapping[str, float]], groups: Mapping[str, str]) -> dict[str, Any]:
    """Means of every group.

    Args:
        by_seed: seed -> case -> value.
        groups: case -> group.

    Returns:
        {} where all cases are of one group. Else `groups`: by name the `mean` over seeds of the mean over the group's
        cases, its `sd` over seeds and the number of `cases`; `over_groups`: `mean` and `sd` of the unweighted mean.
    """
    cases = dict.fromkeys(case for table in by_seed.values() for case in table if case in groups)
    names = sorted({groups[case] for case in cases})
    if len(names) < 2:
        return {}
    means = {
        name: [float(np.mean(found)) for table in by_seed.values() if (found := _of(table, groups, name))]
        for name in names
    }
    alike = [
        float(np.mean([np.mean(found) for name in names if (found := _of(table, groups, name))]))
        for table in by_seed.values()
    ]
    return {
        "groups": {
            name: {**_spread(values), "cases": sum(groups[case] == name for case in cases)}
            for name, values in means.items()
        },
        "over_groups": _spread(alike),
    }


def _of(table: Mapping[str, float], groups: Mapping[str, str], name: str) -> list[float]:
    """Values of a group's cases."""
    return [value for case, value in table.items() if groups.get(case) == name]


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
