"""Statistics over cases: bootstrap confidence interval and rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


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
