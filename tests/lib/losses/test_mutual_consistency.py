from __future__ import annotations

import pytest
import torch

from medseg.losses.mutual_consistency import MutualConsistencyLoss, sharpen


def logits_of(p: list[float]) -> torch.Tensor:
    """(1, 2, n) logits whose softmax gives probability p to class 1."""
    prob = torch.tensor(p, dtype=torch.float64)
    return torch.stack([(1 - prob).log(), prob.log()]).clamp_min(-1e4)[None]


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_sharpening_fixes_0_half_and_1(temperature: float) -> None:
    assert sharpen(logits_of([0.0, 0.5, 1.0]), temperature)[0, 1].tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("p", [0.01, 0.2, 0.45, 0.7])
def test_sharpening_is_the_cards_formula(p: float) -> None:
    expected = p**10 / (p**10 + (1 - p) ** 10)
    assert sharpen(logits_of([p]), 0.1)[0, 1].item() == pytest.approx(expected, rel=1e-4)


def test_sharpening_many_classes_is_a_distribution_with_the_same_winner() -> None:
    logits = torch.randn(2, 5, 4, 4)
    sharp = sharpen(logits, 0.1)
    assert torch.allclose(sharp.sum(1), torch.ones(2, 4, 4))
    assert torch.equal(sharp.argmax(1), logits.argmax(1))


def test_value_by_hand() -> None:
    """p_V = 0.5 and p_A = 0.8 at T = 0.5: sharpen(p_A) = 0.64 / 0.68, sharpen(p_V) = 0.5."""
    loss = MutualConsistencyLoss(0.5)(logits_of([0.5]), logits_of([0.8])).item()
    assert loss == pytest.approx((0.5 - 0.64 / 0.68) ** 2 + (0.8 - 0.5) ** 2, rel=1e-5)


def test_zero_for_equal_certain_branches_and_symmetric() -> None:
    loss = MutualConsistencyLoss()
    sure = logits_of([0.0, 1.0, 1.0])
    assert loss(sure, sure).item() == pytest.approx(0.0, abs=1e-12)
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert loss(a, b).item() == pytest.approx(loss(b, a).item())
    assert loss(a, b) > 0


def test_detached_target_only_moves_the_learner() -> None:
    """V is certain and right in its own eyes: with detached targets the gradient of A is that of its own term."""
    v, a = torch.randn(1, 2, 3), torch.randn(1, 2, 3, requires_grad=True)
    MutualConsistencyLoss(detach_target=True)(v, a).backward()
    expected = torch.autograd.grad(torch.nn.functional.mse_loss(torch.softmax(a, 1), sharpen(v, 0.1)), a)[0]
    assert torch.allclose(a.grad, expected)  # type: ignore[arg-type]


def test_float32_under_autocast() -> None:
    v, a = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    exact = MutualConsistencyLoss()(v, a)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = MutualConsistencyLoss()(v, a)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, exact)


@pytest.mark.parametrize("detach", [True, False])
def test_gradients_are_finite_at_extreme_logits(detach: bool) -> None:
    v = torch.tensor([[[50.0, -50.0, 0.0], [-50.0, 50.0, 0.0]]], requires_grad=True)
    MutualConsistencyLoss(detach_target=detach)(v, -v.detach()).backward()
    assert torch.isfinite(v.grad).all()  # type: ignore[arg-type]


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"temperature = 0"):
        MutualConsistencyLoss(0)
