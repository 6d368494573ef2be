from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.methods.seg4reg.disagreement import relative, score_paths
from medseg.methods.seg4reg.fusion import Paths
from medseg.methods.seg4reg.geometry import Limits, measure_quads
from medseg.metrics.quads import Quads
from medseg.phantoms.spines import make_spine


def certain(value: float = 1.0) -> torch.Tensor:
    return torch.full((1, 10, 10), value)


def test_parts_by_hand() -> None:
    nine = measure_quads(Quads(make_spine(1).corners[:9], np.ones(9)), (1.0, 1.0), 512, Limits())
    one, two = np.array([40.0, 20, 0]), np.array([40.0, 26, 6])

    found = score_paths(Paths(one, two, nine), np.array([36.0, 20, 0]), certain())

    assert found.parts["paths"] == pytest.approx(12 / 66)
    assert found.parts["flip"] == pytest.approx(4 / 58)
    assert found.parts["count"] == pytest.approx(8 / 17)
    assert found.parts["entropy"] == pytest.approx(0, abs=1e-5)
    assert found.value == pytest.approx((0.25 * 12 / 66 + 0.25 * 4 / 58 + 2 * 8 / 17) / 3.5, abs=1e-5)
    assert found.why == f"9 vertebrae found instead of 17, score {found.value:.2f}"


def test_straight_spines_are_not_over_weighted() -> None:
    assert relative(np.array([1.0, 0, 0]), np.array([4.0, 0, 0])) == pytest.approx(0.1)
    assert relative(np.array([90.0, 90, 90]), np.zeros(3)) == 1


def test_agreement_scores_less_than_disagreement() -> None:
    same, other = np.array([40.0, 20, 0]), np.array([60.0, 40, 20])

    low = score_paths(Paths(same, same), same, certain())
    high = score_paths(Paths(same, other), other, certain(0.5001))

    assert low.value < 0.01 < 0.5 < high.value
    assert high.why.startswith("paths differ by 20.0 deg")


def test_a_mask_of_nothing_is_uncertain() -> None:
    assert score_paths(Paths(), None, certain(0.0)).value == 1


def test_known_angles_halve_the_score() -> None:
    one, two = np.array([40.0, 20, 0]), np.array([40.0, 26, 6])

    plain, known = (score_paths(Paths(one, two), one, certain(), has_angles=flag) for flag in (False, True))

    assert known.value == plain.value / 2
    assert known.why.endswith("angles known")
