from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from medseg.losses.region_discrimination import (
    RegionDiscriminationLoss,
    assignment_entropy,
    region_vectors,
    steady_prototypes,
    usage_entropy,
)


def maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    assignment = torch.softmax(torch.randn(3, 4, 5, 6, generator=rng), dim=1)
    return assignment, F.normalize(torch.randn(3, 8, 5, 6, generator=rng), dim=1)


def test_figures_of_the_card() -> None:
    loss = RegionDiscriminationLoss(0.2)
    orthogonal = torch.eye(16)[None].repeat(4, 1, 1)
    identical = torch.ones(4, 16, 8) / 8**0.5

    assert float(loss(orthogonal)) == pytest.approx(0.0963, abs=1e-4)
    assert float(loss(identical)) == pytest.approx(math.log(16), abs=1e-5)


def test_vectors_equal_the_ones_that_are_written_out() -> None:
    assignment, embedding = maps()

    naive = (assignment[:, :, None] * embedding[:, None]).mean(dim=(3, 4))

    assert torch.allclose(region_vectors(assignment, embedding), F.normalize(naive, dim=2), atol=1e-6)


def test_memory_stays_far_below_regions_times_channels_times_pixels() -> None:
    grid, regions, channels = (160, 160), 16, 32
    assignment = torch.full((1, regions, *grid), 1 / regions, requires_grad=True)
    embedding = torch.ones(1, channels, *grid, requires_grad=True)
    saved: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        RegionDiscriminationLoss()(region_vectors(assignment, embedding)).backward()

    product = regions * channels * math.prod(grid)
    assert max(saved) <= channels * math.prod(grid)
    assert sum(saved) < product / 4


def test_order_of_images_and_regions_does_not_matter() -> None:
    found = region_vectors(*maps())
    loss = RegionDiscriminationLoss()

    assert float(loss(found)) == pytest.approx(float(loss(found[[2, 0, 1]][:, [1, 3, 0, 2]])), abs=1e-5)


def test_empty_region_is_no_nan() -> None:
    assignment, embedding = maps()
    assignment = assignment.clone()
    assignment[:, 0] = 0
    assignment.requires_grad_()

    loss = RegionDiscriminationLoss()(region_vectors(assignment, embedding))
    loss.backward()

    assert torch.isfinite(loss)
    assert assignment.grad is not None
    assert torch.isfinite(assignment.grad).all()


def test_prototypes_start_from_the_batch_and_then_move_slowly() -> None:
    found = torch.eye(4)[None].repeat(2, 1, 1)

    first = steady_prototypes(found, torch.zeros(4, 4), 0.9)
    moved = steady_prototypes(found.roll(1, 2), first, 0.9)

    assert torch.allclose(first, torch.eye(4))
    assert float((moved * first).sum(dim=1).min()) > 0.99


def test_entropies_at_their_ends() -> None:
    decided = F.one_hot(torch.arange(4).repeat(9)[None].reshape(1, 6, 6), 4).movedim(-1, 1).float()
    alone = torch.zeros_like(decided)
    alone[:, 0] = 1

    assert float(assignment_entropy(decided)) == pytest.approx(0, abs=1e-4)
    assert float(assignment_entropy(torch.full_like(decided, 0.5))) == pytest.approx(1, abs=1e-4)
    assert float(usage_entropy(decided)) == pytest.approx(1, abs=1e-4)
    assert float(usage_entropy(alone)) == pytest.approx(0, abs=1e-3)


def test_temperature_is_checked() -> None:
    with pytest.raises(ValueError, match="temperature = -1"):
        RegionDiscriminationLoss(-1)


def test_autocast_changes_nothing() -> None:
    assignment, embedding = maps()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        regions = region_vectors(assignment, embedding)
        loss = RegionDiscriminationLoss()(regions)

    assert torch.allclose(regions, region_vectors(assignment, embedding), atol=1e-6)
    assert float(loss) == pytest.approx(float(RegionDiscriminationLoss()(regions)), abs=1e-6)
