"""Which of two models is the better one, from the quality of each on the same cases, group by group.

A union of data sets or domains (`Method.group_cases`) counts each of its groups alike: a pooled mean would let many
cases of a new domain hide what the old ones lose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Qualities = Mapping[str, float]
"""Case id -> quality in [0, 1]."""

LARGEST_FALL = 0.01
"""How far a group's mean quality may fall; multi-domain, a new domain: old ones must not lose more than 1 point."""

_ROUNDING = 1e-9  # 0.80 - 0.79 is more than 0.01 for a computer


@dataclass(frozen=True)
class Comparison:
    """Mean quality of both models in each group.

    Attributes:
        candidate: group -> mean.
        champion: group -> mean; 0 where it does not know the group.
        known: groups of which the champion answers cases.
    """

    candidate: dict[str, float]
    champion: dict[str, float]
    known: frozenset[str]

    @property
    def gain(self) -> float:
        """By how much the candidate's mean over groups is higher."""
        return mean_over_groups(self.candidate) - mean_over_groups(self.champion)

    @property
    def fallen(self) -> list[str]:
        """Groups that the champion knows and in which the candidate is worse by more than `LARGEST_FALL`."""
        limit = LARGEST_FALL + _ROUNDING
        return [name for name in self.candidate if name in self.known and self._fall(name) > limit]

    @property
    def unknown(self) -> list[str]:
        """Groups that only the candidate knows."""
        return [name for name in self.candidate if name not in self.known]

    def _fall(self, group: str) -> float:
        return self.champion[group] - self.candidate[group]


def compare_groups(candidate: Qualities, champion: Qualities, groups: Mapping[str, str]) -> Comparison:
    """Compare two models.

    Args:
        candidate: every case.
        champion: the cases that it answers; the others count as missed.
        groups: case id -> group.
    """
    answered = {case: champion.get(case, 0.0) for case in candidate}
    return Comparison(
        candidate=group_means(candidate, groups),
        champion=group_means(answered, groups),
        known=frozenset(groups[case] for case in champion),
    )


def group_means(qualities: Qualities, groups: Mapping[str, str]) -> dict[str, float]:
    """Mean of each group that has a case, in order of the groups' names."""
    values: dict[str, list[float]] = {}
    for case, quality in qualities.items():
        values.setdefault(groups[case], []).append(quality)
    return {name: float(np.mean(values[name])) for name in sorted(values)}


def mean_over_groups(means: Mapping[str, float]) -> float:
    """Each group counts alike, however many cases it has; 0 where no case can be judged."""
    return float(np.mean(list(means.values()))) if means else 0.0
