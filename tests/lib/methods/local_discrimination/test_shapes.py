from __future__ import annotations

import pytest
import torch

from medseg.methods.local_discrimination.shapes import bound_share, shares_of, thickness_of


def square(side: int) -> torch.Tensor:
    mask = torch.zeros(1, 40, 40)
    mask[:, 10 : 10 + side, 10 : 10 + side] = 1
    return mask


def test_thickness_is_the_diameter_of_the_largest_ball_inside() -> None:
    line = torch.zeros(1, 40, 40)
    line[:, :, 10:13] = 1

    assert thickness_of([square(9)]) == pytest.approx(10, abs=1)
    assert thickness_of([line, line, square(9)]) == pytest.approx(4, abs=1)


def test_shares_span_the_shapes_with_a_tolerance() -> None:
    low, high = shares_of([square(4), square(20)])

    assert low == pytest.approx(0.01 / 1.25)
    assert high == pytest.approx(0.25 * 1.25)
    assert shares_of([torch.ones(1, 4, 4)])[1] == 1.0


@pytest.mark.parametrize(("low", "high", "expected"), [(0.3, 0.5, 0.3), (0.0, 0.05, 0.05), (0.05, 0.5, 0.1)])
def test_the_share_of_the_answer_is_kept_within_bounds(low: float, high: float, expected: float) -> None:
    probability = torch.linspace(0, 1, 1000).reshape(20, 50) ** 6.58  # a tenth is above one half

    bounded = bound_share(probability, low, high)

    assert float((bounded > 0.5).float().mean()) == pytest.approx(expected, abs=0.002)
    assert bool((bounded.flatten().diff() >= 0).all()), "the order of voxels stays"


def test_an_answer_that_is_sure_everywhere_stays_finite() -> None:
    assert bool(bound_share(torch.ones(8, 8), 0.1, 0.2).isfinite().all())
    assert bool(bound_share(torch.zeros(8, 8), 0.1, 0.2).isfinite().all())
