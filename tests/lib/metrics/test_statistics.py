"""Confidence interval and rank correlation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from medseg.metrics.statistics import bootstrap_ci, spearman


def test_interval_of_one_repeated_value_is_that_value():
    assert bootstrap_ci([0.7] * 5, seed=0) == pytest.approx((0.7, 0.7))


def test_interval_is_near_the_normal_approximation():
    values = np.random.default_rng(0).normal(3.0, 1.0, size=400)

    low, high = bootstrap_ci(values, seed=1)

    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_same_seed_gives_the_same_interval():
    assert bootstrap_ci([1.0, 2.0, 4.0], seed=3) == bootstrap_ci([1.0, 2.0, 4.0], seed=3)


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([1.0], 1.5)])
def test_interval_refuses_what_it_cannot_use(values, level):
    with pytest.raises(ValueError, match=r"at least one|\(0, 1\)"):
        bootstrap_ci(values, seed=0, level=level)


def test_spearman_with_ties_equals_scipy():
    first, second = [1.0, 2.0, 2.0, 5.0, 9.0], [3.0, 1.0, 4.0, 4.0, 8.0]

    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)


def test_spearman_of_a_constant_is_zero():
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == 0.0
