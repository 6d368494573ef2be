from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.metrics.cobb import cobb_angles, is_s_shaped, mid_lines, tilts
from medseg.phantoms.spines import place_vertebrae


def spine(profile: NDArray[np.float64], height: int = 1024, lift: float = 0.0) -> NDArray[np.float64]:
    corners = place_vertebrae(profile, (400, height), np.random.default_rng(0))
    return corners + np.array([0.0, lift])


def rule(t: NDArray[np.float64]) -> tuple[int, int]:
    table = np.abs(t[:, None] - t[None])
    p, q = np.unravel_index(int(np.argmax(np.triu(table, 1))), table.shape)
    return int(p), int(q)


def test_one_curve_looks_at_the_ends() -> None:
    t = np.concatenate([np.linspace(5, 20, 6), np.linspace(18, -15, 8), np.linspace(-14, -9, 3)])

    found = cobb_angles(spine(t), 1024)

    assert rule(t) == (5, 13) == found.pairs[0]
    assert found.branch == "c"
    assert found.angles == pytest.approx((35.0, 15.0, 6.0), abs=1e-3)


def test_double_curve_in_the_upper_half_looks_above_and_below() -> None:
    t = np.concatenate([np.linspace(-18, 22, 6), np.linspace(20, -25, 6), np.linspace(-20, 12, 5)])

    found = cobb_angles(spine(t, lift=-150), 1024)

    assert found.branch == "s_above_below"
    assert found.pairs == ((5, 11), (0, 5), (11, 16))
    assert found.angles == pytest.approx((47.0, 40.0, 37.0), abs=1e-3)


def test_double_curve_in_the_lower_half_looks_above_twice() -> None:
    t = np.concatenate(
        [np.linspace(-4, 14, 4), np.linspace(10, -18, 5), np.linspace(-10, 20, 5), np.linspace(15, 0, 3)]
    )

    found = cobb_angles(spine(t, lift=200), 1024)

    assert found.branch == "s_above_above"
    assert found.pairs == ((8, 13), (3, 8), (0, 3))
    assert found.angles == pytest.approx((38.0, 32.0, 18.0), abs=1e-3)


def test_mirror_and_turn_keep_the_angles() -> None:
    corners = spine(np.concatenate([np.linspace(5, 20, 6), np.linspace(18, -15, 8), np.linspace(-14, -9, 3)]))
    mirrored = (corners * [-1, 1] + [400, 0])[:, [1, 0, 3, 2]]
    c, s = np.cos(np.radians(8)), np.sin(np.radians(8))
    turned = corners @ np.array([[c, s], [-s, c]])

    expected = cobb_angles(corners, 1024).angles

    assert cobb_angles(mirrored, 1024).angles == pytest.approx(expected, abs=1e-3)
    assert cobb_angles(turned, 1024).angles == pytest.approx(expected, abs=1e-3)
    assert tilts(turned) == pytest.approx(tilts(corners) + 8)
    assert np.allclose(np.degrees(np.arctan2(*mid_lines(corners).T[::-1])), tilts(corners))


def test_a_spine_without_lean_counts_as_s_shaped_without_a_division_by_zero() -> None:
    straight = np.array([[5.0, y] for y in range(34)])

    with np.errstate(all="raise"):
        assert is_s_shaped(straight)
        assert cobb_angles(spine(np.zeros(17)), 1024).angles == pytest.approx((0, 0, 0), abs=0.02)


@pytest.mark.parametrize("wrong", [np.zeros((1, 4, 2)), np.zeros((17, 3, 2)), np.full((17, 4, 2), np.nan)])
def test_refuses_other_shapes_and_nan(wrong: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="corners"):
        cobb_angles(wrong, 1024)


def test_reproduces_every_stored_angle_of_the_challenge(data_dir: Path) -> None:
    with (data_dir / "spine_xray" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    worst, branches = 0.0, Counter[str]()
    for row in rows:
        corners = np.array([[float(row[f"{a}{k}"]) for a in "xy"] for k in range(68)]).reshape(17, 4, 2)
        found = cobb_angles(corners, float(row["height"]))
        stored = [float(row[f"angle_{k}_deg"]) for k in (1, 2, 3)]
        worst = max(worst, float(np.abs(np.array(found.angles) - stored).max()))
        branches[found.branch] += 1

    assert len(rows) == 466
    assert worst < 0.1
    assert branches == {"c": 68, "s_above_below": 232, "s_above_above": 166}
