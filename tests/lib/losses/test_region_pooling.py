from __future__ import annotations

import pytest
import torch

from medseg.losses.region_pooling import region_means


def test_equals_a_loop_over_regions() -> None:
    values = torch.rand(2, 1, 5, 4, 3)
    regions = torch.randint(0, 4, (2, 1, 5, 4, 3))

    means, counts = region_means(values, regions, 6)

    for b in range(2):
        for r in range(4):
            inside = regions[b] == r
            assert counts[b, r] == inside.sum()
            assert means[b, r] == pytest.approx(float(values[b][inside].mean()), abs=1e-6)


def test_empty_regions_are_zero_and_give_no_gradient() -> None:
    values = torch.rand(1, 1, 3, 3, requires_grad=True)

    means, counts = region_means(values, torch.zeros(1, 1, 3, 3), 5)
    means[:, 1:].sum().backward()

    assert means[0, 1:].tolist() == [0.0] * 4
    assert counts[0].tolist() == [9.0, 0.0, 0.0, 0.0, 0.0]
    assert values.grad is not None
    assert float(values.grad.abs().sum()) == 0


def test_float32_under_autocast_where_half_precision_would_stop_counting() -> None:
    values = torch.ones(1, 1, 70, 100, 10, dtype=torch.bfloat16)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        means, counts = region_means(values, torch.ones_like(values), 2)

    assert means.dtype == torch.float32
    assert float(counts[0, 1]) == 70000  # beyond 65504, and beyond bfloat16's 256
    assert float(means[0, 1]) == 1.0


def test_gradient_is_one_share_of_the_region() -> None:
    values = torch.zeros(1, 1, 4, requires_grad=True)
    means, _ = region_means(values, torch.tensor([[[1, 1, 1, 2]]]), 3)

    means[0, 1].backward()

    assert values.grad is not None
    assert values.grad[0, 0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must both be \(B, 1"):
        region_means(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), 3)
