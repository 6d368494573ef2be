"""Confidence interval and rank correlation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from medseg.metrics.statistics import bootstrap_ci, bootstrap_ratio, holm, spearman, wilcoxon_p


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


def test_wilcoxon_of_six_gains_cannot_go_below_two_in_64():
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)
    assert wilcoxon_p([0.1, -0.2, 0.3, -0.4, 0.5, -0.6]) > 0.5


def test_wilcoxon_leaves_equal_pairs_out():
    assert wilcoxon_p([0.0, 0.0]) == 1.0
    assert wilcoxon_p([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)


def test_holm_multiplies_the_smallest_by_the_number_of_tests():
    # sorted: c 0.01 * 3, a 0.02 * 2, b 0.5 * 1
    assert holm({"a": 0.02, "b": 0.5, "c": 0.01}) == pytest.approx({"a": 0.04, "b": 0.5, "c": 0.03})


def test_holm_never_falls_and_never_exceeds_one():
    assert holm({"a": 0.01, "b": 0.011}) == pytest.approx({"a": 0.02, "b": 0.02})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_ratio_is_that_of_the_means_and_its_interval_resamples_pairs():
    below = np.random.default_rng(0).uniform(0.1, 0.9, 50)

    assert bootstrap_ratio(1.5 * below, below) == pytest.approx((1.5, 1.5, 1.5))  # pairs stay together
    assert bootstrap_ratio([1.0, 1.0], [0.0, 2.0])[0] == 1.0  # the mean of ratios would be infinite
    ratio, low, high = bootstrap_ratio([0.4, 0.6, 0.8], [0.2, 0.4, 0.3])
    assert ratio == pytest.approx(2.0)
    assert 1.5 - 1e-9 <= low < ratio < high <= 8 / 3 + 1e-9  # the lowest and the highest ratio of one case


def test_ratio_to_nothing_is_infinite():
    ratio, low, high = bootstrap_ratio([1.0, 1.0, 1.0], [0.0, 0.0, 0.5])

    assert ratio == pytest.approx(6.0)
    assert (low, high) == (2.0, np.inf)
    assert bootstrap_ratio([0.0], [0.0])[0] == 1.0
    with pytest.raises(ValueError, match="two lists of one length"):
        bootstrap_ratio([1.0], [])
