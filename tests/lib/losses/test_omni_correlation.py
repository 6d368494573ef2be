from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from medseg.losses.omni_correlation import OmniCorrelationLoss


def slow_loss(v: np.ndarray, a: np.ndarray, memory: np.ndarray, tau: float, normalise: bool, symmetric: bool) -> float:
    """The formula, row by row and entry by entry."""

    def correlation(row: np.ndarray) -> list[float]:
        scores = []
        for entry in memory:
            score = float(sum(x * y for x, y in zip(row, entry, strict=True)))
            if normalise:
                score /= math.sqrt(sum(x * x for x in row)) * math.sqrt(sum(y * y for y in entry))
            scores.append(math.exp(score / tau))
        return [s / sum(scores) for s in scores]

    total = 0.0
    for row_v, row_a in zip(v, a, strict=True):
        r_v, r_a = correlation(row_v), correlation(row_a)
        forward = -sum(p * math.log(q) for p, q in zip(r_a, r_v, strict=True))
        backward = -sum(p * math.log(q) for p, q in zip(r_v, r_a, strict=True))
        total += (forward + backward) / 2 if symmetric else forward
    return total / len(v)


def features(rows: int, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("normalise", "symmetric"), itertools.product([True, False], repeat=2))
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_equals_the_slow_formula(tau: float, normalise: bool, symmetric: bool) -> None:
    v, a, memory = features(7, seed=1), features(7, seed=2), features(9, seed=3)
    loss = OmniCorrelationLoss(tau, normalise, symmetric)(v, a, memory)
    expected = slow_loss(v.double().numpy(), a.double().numpy(), memory.double().numpy(), tau, normalise, symmetric)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_uniform_rows_cost_the_log_of_the_columns() -> None:
    rows, memory = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]).repeat(512, 1)
    assert OmniCorrelationLoss()(rows, rows, memory).item() == pytest.approx(math.log(512), rel=1e-6)


def test_never_below_the_mean_entropy_of_the_target() -> None:
    v, a, memory = features(50, seed=1), features(50, seed=2), features(30, seed=3)
    loss = OmniCorrelationLoss(0.1, symmetric=False)
    assert loss(v, a, memory) >= loss(a, a, memory)  # cross-entropy with itself is the entropy
    assert loss(a, a, memory) > 0


def test_masked_rows_and_columns_do_not_count() -> None:
    v, a, memory = features(6, seed=1), features(6, seed=2), features(8, seed=3)
    row_mask, memory_mask = torch.arange(6) < 4, torch.arange(8) % 2 == 0
    masked = OmniCorrelationLoss()(v, a, memory, row_mask, memory_mask)
    plain = OmniCorrelationLoss()(v[:4], a[:4], memory[::2])
    assert masked.item() == pytest.approx(plain.item(), rel=1e-6)


def test_no_memory_is_zero_without_gradient() -> None:
    v = features(4).requires_grad_()
    loss = OmniCorrelationLoss()(v, v, torch.zeros(0, 5))
    assert loss.item() == 0.0
    assert not loss.requires_grad


def test_all_masked_is_zero_with_zero_gradient() -> None:
    v = features(4).requires_grad_()
    for rows, columns in ((torch.zeros(4).bool(), None), (torch.ones(4).bool(), torch.zeros(3).bool())):
        v.grad = None
        loss = OmniCorrelationLoss()(v, v, features(3), rows, columns)
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(v.grad, torch.zeros(4, 5))  # type: ignore[arg-type]


def test_one_row_and_one_column() -> None:
    loss = OmniCorrelationLoss()(features(1), features(1, seed=1), features(1, seed=2))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)  # one column: certainty


def test_row_order_does_not_matter() -> None:
    v, a, memory = features(20, seed=1), features(20, seed=2), features(10, seed=3)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    loss = OmniCorrelationLoss()
    assert loss(v, a, memory).item() == pytest.approx(loss(v[order], a[order], memory).item(), rel=1e-6)


def test_target_is_detached_unless_asked() -> None:
    v, a, memory = features(4, seed=1).requires_grad_(), features(4, seed=2).requires_grad_(), features(6, seed=3)
    detached = OmniCorrelationLoss(symmetric=False, detach_target=True)(v, a, memory)
    assert torch.autograd.grad(detached, a, allow_unused=True)[0] is None
    attached = OmniCorrelationLoss(symmetric=False, detach_target=False)(v, a, memory)
    assert torch.autograd.grad(attached, a)[0].abs().sum() > 0


def test_memory_never_gets_a_gradient() -> None:
    memory = features(6, seed=3).requires_grad_()
    v = features(4).requires_grad_()
    OmniCorrelationLoss()(v, features(4, seed=1), memory).backward()
    assert memory.grad is None


def test_float32_under_autocast_and_no_nan_for_zero_rows() -> None:
    v = torch.zeros(3, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = OmniCorrelationLoss()(v, v, features(6))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(6), rel=1e-5)
    assert torch.isfinite(v.grad).all()  # type: ignore[arg-type]


def test_gradient_agrees_with_finite_differences() -> None:
    """Along one direction, because the loss works in float32."""
    v, a, memory, direction = (features(3, seed=s) for s in (1, 2, 3, 4))
    loss = OmniCorrelationLoss(0.5, symmetric=False)
    slope = (torch.autograd.grad(loss(v.requires_grad_(), a, memory), v)[0] * direction).sum().item()
    with torch.no_grad():
        difference = (loss(v + 0.01 * direction, a, memory) - loss(v - 0.01 * direction, a, memory)).item() / 0.02
    assert slope == pytest.approx(difference, rel=1e-2)


def test_anchor_by_hand() -> None:
    """One entry per class; a row of class 0 with cosines 1 and 0 at tau 1 has the share e / (e + 1)."""
    memory = torch.eye(2)[:, None]  # (2 classes, 1 entry, 2)
    everything = torch.ones(2, 1, dtype=torch.bool)
    loss = OmniCorrelationLoss(1.0).anchor(torch.eye(2)[:, None], memory, everything, everything)
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 1)), rel=1e-5)


def test_anchor_ignores_missing_rows_and_classes() -> None:
    rows, memory = torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 6, 5)
    row_mask = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    memory_mask = torch.tensor([[True] * 6, [False] * 6, [True] * 6])
    loss = OmniCorrelationLoss(0.5)
    value = loss.anchor(rows, memory, row_mask, memory_mask)
    plain = loss.anchor(rows[[0, 2], :2], memory[[0, 2]], row_mask[[0, 2], :2], torch.ones(2, 6).bool())
    assert value.item() == pytest.approx(plain.item(), rel=1e-5)
    value.backward()
    assert (rows.grad.abs().sum(-1) > 0).tolist() == [[True, True, False, False], [False] * 4, [False] * 4]  # type: ignore[union-attr]
    assert loss.anchor(rows, memory, row_mask, torch.zeros(3, 6).bool()).item() == 0.0


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"temperature = -1"):
        OmniCorrelationLoss(-1)
