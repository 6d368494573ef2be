from __future__ import annotations

import math

import pytest
import torch

from medseg.losses.angles import angle_loss


def test_value_by_hand() -> None:
    found, target = torch.tensor([[0.5, 0.25, 0.0]]), torch.tensor([[0.4, 0.25, 0.1]])

    loss = angle_loss(found, target, torch.ones(1, 3), l1_weight=0.3)

    assert float(loss) == pytest.approx(0.2 / 1.5 + 0.3 * 0.2 / 3)


def test_unknown_angles_and_images_count_nowhere() -> None:
    found = torch.tensor([[0.5, 0.2, 0.1], [0.9, 0.9, 0.9]], requires_grad=True)
    target = torch.tensor([[0.4, math.nan, 0.1], [math.nan] * 3])
    known = torch.tensor([[1.0, 0, 1], [0, 0, 0]])

    loss = angle_loss(found, target, known, l1_weight=0)
    loss.backward()

    assert float(loss) == pytest.approx(0.1 / 1.1)
    assert found.grad is not None
    assert found.grad[1].tolist() == [0, 0, 0]
    assert float(found.grad[0, 1]) == 0


def test_nothing_known_is_zero_with_zero_gradient() -> None:
    found = torch.rand(2, 3, requires_grad=True)

    loss = angle_loss(found, torch.full((2, 3), math.nan), torch.zeros(2, 3))
    loss.backward()

    assert float(loss) == 0
    assert found.grad is not None
    assert not found.grad.any()


def test_images_have_equal_weight_whatever_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    found, target = torch.rand(4, 3, generator=generator), torch.rand(4, 3, generator=generator)
    order = torch.tensor([2, 0, 3, 1])

    assert float(angle_loss(found, target, torch.ones(4, 3))) == pytest.approx(
        float(angle_loss(found[order], target[order], torch.ones(4, 3)))
    )


def test_a_straight_spine_does_not_explode() -> None:
    assert float(angle_loss(torch.full((1, 3), 0.01), torch.zeros(1, 3), torch.ones(1, 3), 0)) == pytest.approx(0.6)
