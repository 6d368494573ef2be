"""Statistics over cases: bootstrap confidence intervals, paired test with correction, rank correlation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata, wilcoxon


def bootstrap_ci(values: Sequence[float], seed: int = 0, level: float = 0.95, draws: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: one number per case (for a comparison: the paired differences).
        seed: of the resampling.
        level: coverage of the interval, in (0, 1).
        draws: number of resamples.

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    if not len(values):
        raise ValueError("a confidence interval needs at least one value, got none")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a coverage in (0, 1)")
    sample = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(sample), size=(draws, len(sample)))
    means = sample[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_ratio(
    above: Sequence[float], below: Sequence[float], seed: int = 0, level: float = 0.95, draws: int = 2000
) -> tuple[float, float, float]:
    """Ratio of two means over the same cases, and its percentile bootstrap interval.

    Of means, not the mean of ratios: one case with a value near 0 below would decide alone.

    Args:
        above: one number >= 0 per case.
        below: the same cases in the same order.
        seed: of the resampling of cases.
        level: coverage of the interval, in (0, 1).
        draws: number of resamples.

    Returns:
        The ratio and both ends of the interval; infinite where the mean below is 0 (1 where both are).

    Raises:
        ValueError: no values, or lists of different lengths.
    """
    if not len(above) or len(above) != len(below):
        raise ValueError(f"a ratio needs two lists of one length of at least 1, got {len(above)} and {len(below)}")
    pairs = np.asarray([above, below], dtype=float)
    picks = np.random.default_rng(seed).integers(0, pairs.shape[1], size=(draws, pairs.shape[1]))
    upper, lower = np.concatenate([pairs[:, picks].mean(axis=2), pairs.mean(axis=1, keepdims=True)], axis=1)
    ratios = np.divide(upper, lower, out=np.where(upper > 0, np.inf, 1.0), where=lower > 0)
    ends = np.quantile(ratios[:-1], [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(ratios[-1]), float(ends[0]), float(ends[1])


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; 0 where one side is constant.

    Raises:
        ValueError: the lengths differ, or there are fewer than two pairs.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"rank correlation needs two lists of one length of at least 2, got {len(first)}, {len(second)}"
        )
    ranks = rankdata(first), rankdata(second)
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of paired differences; pairs that are equal are left out.

    Exact up to 50 pairs without ties. No pair that differs: 1. With n pairs p cannot go below 2 / 2^n.
    """
    values = np.asarray([value for value in differences if value != 0], dtype=float)
    return float(wilcoxon(values).pvalue) if len(values) else 1.0


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of the p values of several tests by name: the i-th smallest of m times m - i + 1, rising, <= 1.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(values, key=lambda name: values[name])):
        largest = max(largest, min(1.0, values[name] * (len(values) - rank)))
        corrected[name] = largest
    return {name: corrected[name] for name in values}
