"""Supervised contrastive loss: values by hand, floor, order, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from medseg.losses.supervised_contrastive import SupervisedContrastiveLoss, contrastive_floor


def test_value_of_four_items_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    groups = torch.tensor([0, 0, 1, 1])

    # every anchor: its positive is orthogonal (0), one other equals it (1/tau), one is orthogonal (0)
    expected = math.log(2 + math.exp(1 / 0.5))
    assert float(SupervisedContrastiveLoss(0.5)(z, groups)) == pytest.approx(expected, rel=1e-5)


def test_perfect_clusters_reach_the_floor() -> None:
    groups = torch.tensor([0] * 4 + [1] * 3 + [2] * 2)
    z = torch.eye(3)[groups]

    loss = float(SupervisedContrastiveLoss(0.02)(z, groups))

    assert contrastive_floor(groups) == pytest.approx((4 * math.log(3) + 3 * math.log(2) + 0) / 9)
    assert loss == pytest.approx(contrastive_floor(groups), abs=1e-4)
    assert loss < float(SupervisedContrastiveLoss(0.02)(z.roll(1, 0), groups))


def test_order_and_length_of_the_features_do_not_matter() -> None:
    torch.manual_seed(0)
    z, groups = torch.randn(10, 5), torch.arange(10) % 3
    order = torch.randperm(10)
    loss = SupervisedContrastiveLoss()

    torch.testing.assert_close(loss(3 * z[order], groups[order]), loss(z, groups))


def test_item_alone_in_its_group_is_no_anchor() -> None:
    z, groups = torch.eye(3), torch.tensor([0, 0, 1])
    assert float(SupervisedContrastiveLoss(1.0)(z, groups)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("groups", [[0, 0, 0], [0, 1, 2]])
def test_nothing_to_compare_costs_nothing(groups: list[int]) -> None:
    z = torch.randn(3, 4, requires_grad=True)
    loss = SupervisedContrastiveLoss()(z, torch.tensor(groups))
    loss.backward()

    assert float(loss) == 0
    assert float(z.grad.abs().sum()) == 0


def test_gradient_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    z = torch.randn(6, 3, dtype=torch.float32, requires_grad=True)
    loss = SupervisedContrastiveLoss(0.5)
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    (gradient,) = torch.autograd.grad(loss(z, groups), z)
    step = torch.zeros_like(z)
    step[2, 1] = 1e-2
    slope = (loss(z + step, groups) - loss(z - step, groups)) / 2e-2

    assert float(gradient[2, 1]) == pytest.approx(float(slope), abs=1e-3)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        SupervisedContrastiveLoss(0)
