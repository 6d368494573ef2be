from __future__ import annotations

import math

import pytest

from medseg.losses.ramp import ramp_up


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [(-1, math.exp(-5)), (0, math.exp(-5)), (50, math.exp(-1.25)), (100, 1.0), (1000, 1.0)],
)
def test_values(iteration: int, expected: float) -> None:
    assert ramp_up(iteration, 100) == pytest.approx(expected)


def test_no_length_means_full_weight() -> None:
    assert ramp_up(0, 0) == 1.0


def test_never_falls() -> None:
    values = [ramp_up(t, 37.5) for t in range(60)]
    assert values == sorted(values)
