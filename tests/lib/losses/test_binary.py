from __future__ import annotations

import math

import pytest
import torch

from medseg.losses.binary import balanced_cross_entropy, binary_dice_ce, binary_entropy, equivariance


def test_entropy_is_one_where_undecided_and_counts_inside_only() -> None:
    logits, mask = torch.tensor([[[0.0, 0.0, 30.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]])

    assert float(binary_entropy(logits, mask)) == pytest.approx(1.0)
    assert float(binary_entropy(logits, 1 - mask)) == pytest.approx(0.0, abs=1e-6)
    assert float(binary_entropy(logits, torch.zeros_like(mask))) == 0
    p = 1 / (1 + math.exp(-1))
    expected = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert float(binary_entropy(torch.ones(1, 1, 2), torch.ones(1, 1, 2))) == pytest.approx(expected, rel=1e-5)


def test_balanced_cross_entropy_by_hand() -> None:
    logits = torch.zeros(1, 1, 4)
    target, known = torch.tensor([[[1, 0, 0, 0]]]), torch.ones(1, 1, 4)

    # one positive of four: weight 0.75 against 0.25 each; every voxel costs ln 2
    assert float(balanced_cross_entropy(logits, target, known)) == pytest.approx(math.log(2))
    pushed = balanced_cross_entropy(torch.tensor([[[-2.0, -2, -2, -2]]]), target, known)
    expected = (0.75 * math.log(1 + math.exp(2)) + 0.75 * math.log(1 + math.exp(-2))) / 1.5
    assert float(pushed) == pytest.approx(expected, rel=1e-5)


def test_ignored_voxels_do_not_count() -> None:
    target, known = torch.tensor([[[1, 0, 255]]]), torch.tensor([[[1.0, 1.0, 0.0]]])
    logits = torch.tensor([[[3.0, -3.0, 0.0]]], requires_grad=True)

    for loss in (balanced_cross_entropy, binary_dice_ce):
        value = loss(logits, target, known)
        (gradient,) = torch.autograd.grad(value, logits)
        assert float(gradient[0, 0, 2]) == 0
        assert float(gradient[0, 0, 0]) < 0 < float(gradient[0, 0, 1])


def test_dice_ce_perfect_below_bad_and_nothing_known_is_finite() -> None:
    target, known = torch.tensor([[[1, 1, 0, 0]]]), torch.ones(1, 1, 4)
    good = binary_dice_ce(torch.tensor([[[9.0, 9, -9, -9]]]), target, known)
    bad = binary_dice_ce(torch.tensor([[[-9.0, -9, 9, 9]]]), target, known)

    assert float(good) < 0.01
    assert float(bad) > 5
    assert float(binary_dice_ce(torch.zeros(1, 1, 4), target, torch.zeros(1, 1, 4))) == 0


def test_equivariance_is_zero_for_equal_maps() -> None:
    first, mask = torch.rand(1, 1, 3, 3), torch.ones(1, 1, 3, 3)

    assert float(equivariance(first, first, mask)) == 0
    assert float(equivariance(torch.zeros(1, 1, 3), torch.full((1, 1, 3), 0.5), torch.ones(1, 1, 3))) == (
        pytest.approx(0.5 - 0.05)
    )
