from __future__ import annotations

import math

import pytest

from medseg.metrics.smape import angle_errors, smape


def test_image_wise_ratio_without_a_factor_of_one_half() -> None:
    assert smape([40, 20, 10], [50, 10, 10]) == pytest.approx(100 * 20 / 140)
    assert smape([0, 0, 0], [0, 0, 0]) == 0
    assert smape([0, 0, 0], [30, 20, 10]) == 100


def test_unknown_angles_are_left_out() -> None:
    assert smape([40, 20, 10], [50, math.nan, 10]) == pytest.approx(100 * 10 / 110)
    assert "mae_2" not in angle_errors([40, 20, 10], [50, math.nan, 10])
    with pytest.raises(ValueError, match="no true angle"):
        angle_errors([1.0], [math.nan])


def test_all_errors_by_hand() -> None:
    found = angle_errors([43, 20, 4], [40, 20, 0])

    assert found["mae"] == pytest.approx(7 / 3)
    assert (found["mae_1"], found["mae_2"], found["mae_3"]) == (3, 0, 4)
    assert found["smape_3"] == pytest.approx(100, abs=1e-3)
    assert (found["manhattan"], found["euclidean"], found["chebyshev"]) == (7, 5, 4)
    a, b = math.radians(3), math.radians(4)
    assert found["cmae"] == pytest.approx(
        math.degrees(math.atan2(math.sin(a) + math.sin(b), math.cos(a) + math.cos(b) + 1))
    )


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="shape"):
        smape([1, 2], [1, 2, 3])
