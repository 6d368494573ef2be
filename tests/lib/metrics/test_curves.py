from __future__ import annotations

import numpy as np
import pytest

from medseg.metrics.curves import spine_curves, turning_points
from medseg.phantoms.spines import place_vertebrae


def test_turning_points_ignore_small_swings() -> None:
    assert turning_points(np.array([0, 10, 20, 19, 20, 0, -12, -5]), 3) == [0, 2, 6, 7]
    assert turning_points(np.array([0.0, 1, 0, 1]), 3) == []


def test_a_thoracic_and_a_lumbar_curve() -> None:
    tilts = np.concatenate([np.linspace(-12, 20, 5), np.linspace(15, -22, 7), np.linspace(-15, 10, 5)])
    corners = place_vertebrae(tilts, (400, 1024), np.random.default_rng(0))

    found = spine_curves(corners)

    assert found.pt is not None
    assert found.mt is not None
    assert found.tl is not None
    assert (found.mt.upper, found.mt.lower) == (4, 11)
    assert found.mt.angle == pytest.approx(42, abs=0.01)
    assert 5 <= found.mt.apex <= 10
    assert found.pt.angle == pytest.approx(32, abs=0.01)
    assert found.tl.angle == pytest.approx(32, abs=0.01)


def test_a_straight_spine_has_no_curve() -> None:
    corners = place_vertebrae(np.linspace(0, 2, 17), (400, 1024), np.random.default_rng(0))

    found = spine_curves(corners)

    assert (found.pt, found.mt, found.tl) == (None, None, None)
