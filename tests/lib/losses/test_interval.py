from __future__ import annotations

import pytest
import torch

from medseg.losses.interval import IntervalLoss


def loss(r: float, low: float, high: float, **options: float) -> float:
    one = torch.ones(1)
    return float(IntervalLoss(**options)(r * one, low * one, high * one, one))


@pytest.mark.parametrize("r", [0.2, 0.3, 0.4])
def test_nothing_inside(r: float) -> None:
    assert loss(r, 0.2, 0.4) == 0


def test_value_by_hand() -> None:
    # power 1: outside = 0.5 - 0.3 = 0.2, huber with delta 0.1 = 0.2 - 0.05 = 0.15, width 0.1 = tolerance
    assert loss(0.5, 0.2, 0.3, power=1.0) == pytest.approx(1.5, rel=1e-4)
    # square branch: outside 0.05 -> 0.5 * 0.0025 / 0.1 = 0.0125, over 0.1
    assert loss(0.15, 0.2, 0.3, power=1.0) == pytest.approx(0.125, rel=1e-3)


def test_continuous_at_the_edge_and_pulls_inwards() -> None:
    share = torch.tensor([0.4001, 0.1999], requires_grad=True)
    low, high = torch.full((2,), 0.2), torch.full((2,), 0.4)

    value = IntervalLoss()(share, low, high, torch.ones(2))
    value.backward()

    assert 0 < float(value) < 1e-5
    assert share.grad is not None
    assert share.grad[0] > 0 > share.grad[1]


def test_wide_bins_do_not_push_harder() -> None:
    assert loss(0.6, 0.0, 0.5) < loss(0.6, 0.45, 0.5)


def test_weights_and_unknown_regions() -> None:
    criterion = IntervalLoss(power=1.0)
    share, low, high = torch.tensor([0.5, 0.9]), torch.tensor([0.2, 0.0]), torch.tensor([0.3, 0.1])

    assert float(criterion(share, low, high, torch.tensor([1.0, 0.0]))) == pytest.approx(1.5, rel=1e-4)
    assert float(criterion(share, low, high, torch.zeros(2))) == 0


def test_gradcheck() -> None:
    share = torch.tensor([0.05, 0.35, 0.8], dtype=torch.float64, requires_grad=True)
    low, high = torch.tensor([0.1, 0.3, 0.2]).double(), torch.tensor([0.2, 0.4, 0.3]).double()

    assert torch.autograd.gradcheck(lambda s: IntervalLoss()(s, low, high, torch.ones(3).double()), share)


def test_the_root_of_zero_has_a_finite_slope() -> None:
    share = torch.zeros(1, requires_grad=True)

    IntervalLoss()(share, torch.tensor([0.2]), torch.tensor([0.3]), torch.ones(1)).backward()

    assert share.grad is not None
    assert torch.isfinite(share.grad).all()


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"power 0 must lie in \(0, 1\]"):
        IntervalLoss(power=0)
