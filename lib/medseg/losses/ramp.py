"""Ramp-up of a loss term's weight over training."""

from __future__ import annotations

import math


def ramp_up(iteration: int, length: float) -> float:
    """Weight in (0, 1] that grows as exp(-5 (1 - t)^2) with t = iteration / length, and stays at 1 from t = 1 on.

    Args:
        iteration: counts from 0.
        length: iterations until full weight; 0 or less gives 1 at once.

    Source: Laine and Aila, Temporal ensembling, ICLR 2017, arXiv 1610.02242, sec. 3.1; CAML card sec. 5.
    Deviation: CAML raises the weight in stairs of 150 iterations; ours is continuous, so any budget has the same form.
    """
    if length <= 0:
        return 1.0
    remaining = 1.0 - min(max(iteration, 0), length) / length
    return math.exp(-5.0 * remaining**2)
