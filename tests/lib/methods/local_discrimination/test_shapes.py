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
    assert thickness_of([torch.ones(1, 12, 40)]) == pytest.approx(12, abs=1), "a cut shape does not go on outside"


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


@pytest.mark.parametrize(("value", "expected"), [(1.0, 0.25), (0.0, 0.125)])
def test_an_answer_that_is_sure_everywhere_gets_a_share_within_bounds(value: float, expected: float) -> None:
    bounded = bound_share(torch.full((8, 8), value), 0.125, 0.25)

    assert float((bounded > 0.5).float().mean()) == expected


def test_a_sure_mask_that_is_too_large_is_cut_and_not_lost() -> None:
    probability = torch.zeros(10, 10)
    probability[:, :3] = 1.0

    assert float((bound_share(probability, 0.05, 0.2) > 0.5).float().mean()) == pytest.approx(0.2)
