from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from medseg.losses.patch_discrimination import PatchDiscriminationLoss, mixed_target


def unit(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, length, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_value_of_two_orthogonal_pairs() -> None:
    vectors = torch.eye(2)

    loss = PatchDiscriminationLoss(1.0)(vectors, vectors)

    assert float(loss) == pytest.approx(math.log(1 + 2 * math.exp(-1)), abs=1e-6)  # partner 1, two negatives at 0


def test_random_vectors_give_the_figures_of_the_card() -> None:
    first, second = unit(512, 32, 1), unit(512, 32, 2)

    plain = PatchDiscriminationLoss(0.1)(first, second)
    released = PatchDiscriminationLoss(0.1, "released")(first, second)

    assert float(plain) == pytest.approx(8.4, abs=0.3)
    assert float(released - plain) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("form", ["nt_xent", "released"])
def test_perfect_pairs_at_low_temperature_have_a_finite_gradient(form: str) -> None:
    vectors = torch.eye(16).requires_grad_()

    loss = PatchDiscriminationLoss(0.02, form)(vectors, vectors)
    loss.backward()

    assert torch.isfinite(loss)
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


def test_blocked_and_invalid_places_get_no_gradient() -> None:
    first, second = unit(4, 8, 1).requires_grad_(), unit(4, 8, 2).requires_grad_()
    valid = torch.tensor([True, True, True, False])
    blocked = torch.eye(4, dtype=torch.bool)
    blocked[0, 1:] = blocked[1:, 0] = True

    PatchDiscriminationLoss(0.1)(first, second, valid, blocked).backward()

    assert first.grad is not None
    assert float(first.grad[3].abs().sum()) == 0  # not valid: no anchor, no negative
    assert float(first.grad[0].abs().sum()) == pytest.approx(0, abs=1e-5)  # everything but its partner is blocked
    assert float(first.grad[1].abs().sum()) > 0


def test_order_of_the_pairs_does_not_matter() -> None:
    first, second, order = unit(6, 8, 1), unit(6, 8, 2), torch.tensor([3, 1, 0, 5, 4, 2])
    loss = PatchDiscriminationLoss(0.1, "released")

    assert float(loss(first, second)) == pytest.approx(float(loss(first[order], second[order])), abs=1e-5)
    assert float(loss(first, first)) < float(loss(first, second))


def test_gradient_is_the_numerical_one() -> None:
    first = unit(3, 4, 1).requires_grad_()

    def function(x: torch.Tensor) -> torch.Tensor:
        return PatchDiscriminationLoss(0.5, "released")(x, unit(3, 4, 2))

    assert torch.autograd.gradcheck(function, first, eps=1e-3, atol=1e-2, check_grad_dtypes=False, nondet_tol=0)


def test_nothing_valid_gives_zero() -> None:
    first = unit(3, 4, 1).requires_grad_()

    loss = PatchDiscriminationLoss()(first, unit(3, 4, 2), torch.zeros(3, dtype=torch.bool))
    loss.backward()

    assert float(loss) == 0
    assert first.grad is not None


def test_mixed_target_is_detached_and_ends_at_its_parts() -> None:
    a, b = (unit(6, 8, seed).reshape(2, 3, 8).requires_grad_() for seed in (1, 2))

    target = mixed_target(a, b, torch.tensor([1.0, 0.5]))

    assert not target.requires_grad
    assert torch.allclose(target[0], a[0], atol=1e-6)
    assert torch.allclose(target[1], F.normalize(a[1] + b[1], dim=1), atol=1e-6)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature = 0"):
        PatchDiscriminationLoss(0)
    with pytest.raises(ValueError, match="form = 'x' is unknown"):
        PatchDiscriminationLoss(0.1, "x")


def test_autocast_changes_nothing() -> None:
    first, second = unit(64, 32, 1), unit(64, 32, 2)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = PatchDiscriminationLoss(0.05)(first, second)

    assert float(loss) == pytest.approx(float(PatchDiscriminationLoss(0.05)(first, second)), abs=1e-5)
