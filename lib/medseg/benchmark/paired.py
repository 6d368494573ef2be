"""Paired tests of a benchmark: one arm against each of the others, patient by patient, also in each part of a union."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg.metrics.statistics import bootstrap_ci, holm, wilcoxon_p


def all_tests(
    arms: Mapping[str, Mapping[str, float]],
    tested: str | Sequence[str] | None,
    patient: Mapping[str, str],
    groups: Mapping[str, str],
) -> list[dict[str, Any]]:
    """`paired_tests` of every arm that is to be tested and is there; of the last arm where none of them is."""
    wanted = [tested] if isinstance(tested, str) else list(tested or ())
    names: list[str | None] = [name for name in wanted if name in arms]
    return [found for name in names or [None] if (found := paired_tests(arms, name, patient, groups))]


def paired_tests(
    arms: Mapping[str, Mapping[str, float]],
    tested: str | None,
    patient: Mapping[str, str],
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The tested arm against each of the others, one pair per patient (the mean over the patient's cases and seeds).

    Args:
        arms: values of every case by arm.
        tested: name of the arm; None: the last one.
        patient: patient of every case; cases that it does not name are patients of their own.
        groups: part of a union (data set, domain) that a case belongs to.

    Returns:
        `tested` and, by name of the other arm under `against`, what `_difference` says of all patients, `p` of
        Wilcoxon's signed-rank test, `p_holm` corrected for all these tests, and where the cases are of several groups
        `groups`: what `_difference` says of each. Groups are too small for tests of their own.
    """
    name = tested if tested in arms else next(reversed(list(arms)), None)
    if name is None or len(arms) < 2:
        return {}
    pairs = {other: _pairs(arms[name], arms[other], patient) for other in arms if other != name}
    pairs = {other: values for other, values in pairs.items() if values}
    corrected = holm({other: wilcoxon_p(values) for other, values in pairs.items()})
    against = {
        other: {
            **_difference(values),
            "p": wilcoxon_p(values),
            "p_holm": corrected[other],
            **_by_group(arms[name], arms[other], patient, groups or {}),
        }
        for other, values in pairs.items()
    }
    return {"tested": name, "against": against}


def _difference(values: Sequence[float]) -> dict[str, Any]:
    """`mean` difference with `ci95` (bootstrap over patients), `higher` in so many of `patients`."""
    return {
        "mean": float(np.mean(values)),
        "ci95": list(bootstrap_ci(values)),
        "higher": sum(value > 0 for value in values),
        "patients": len(values),
    }


def _by_group(
    one: Mapping[str, float], two: Mapping[str, float], patient: Mapping[str, str], groups: Mapping[str, str]
) -> dict[str, Any]:
    """The differences within each group; {} where there is one."""
    found = {}
    for group in sorted({groups[case] for case in one if case in groups}):
        values = _pairs({case: value for case, value in one.items() if groups.get(case) == group}, two, patient)
        if values:
            found[group] = _difference(values)
    return {"groups": found} if len(found) > 1 else {}


def _pairs(one: Mapping[str, float], two: Mapping[str, float], patient: Mapping[str, str]) -> list[float]:
    """Differences of two arms, one per patient."""
    found: dict[str, list[float]] = {}
    for case in one:
        if case in two:
            found.setdefault(patient.get(case, case), []).append(one[case] - two[case])
    return [float(np.mean(values)) for values in found.values()]
