from __future__ import annotations

import pytest
import torch

from medseg.methods.dram.cuts import EDGE, chosen_by_rank, decided, otsu_cut

ONE = torch.ones(8, 8, 4, dtype=torch.uint8)


@pytest.mark.parametrize("extent", [0.0, 0.1, 0.33, 1.0])
def test_the_rank_cut_reproduces_the_extent_to_one_voxel(extent: float) -> None:
    torch.manual_seed(0)

    moved = decided(torch.randn(8, 8, 4), ONE, extents={1: extent})

    assert int((moved > 0.5).sum()) == round(extent * 256)


@pytest.mark.parametrize("level", [1e-9, 1e-5, 0.3, 1 - 1e-5])
@pytest.mark.parametrize("spread", [0.0, 0.01])
def test_a_map_that_is_sure_of_itself_or_constant_obeys_the_extent(level: float, spread: float) -> None:
    torch.manual_seed(0)
    logits = torch.logit(torch.tensor(level, dtype=torch.float64)).float() + spread * torch.randn(8, 8, 4)

    moved = decided(logits, ONE, extents={1: 0.2})

    assert int((moved > 0.5).sum()) == 51
    assert torch.equal(moved > 0.5, chosen_by_rank(logits, ONE, {1: 0.2}))
    if spread:
        assert float(logits[moved > 0.5].min()) >= float(logits[moved < 0.5].max())
    assert float((moved - 0.5).abs().min()) >= 0.9 * EDGE  # survives interpolation


def test_regions_have_cuts_of_their_own_and_order_stays() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.7, 0.8, 0.9, 5.0]).logit(1e-6)
    regions = torch.tensor([1, 1, 1, 2, 2, 2, 0])

    moved = decided(logits, regions, extents={1: 1 / 3, 2: 1 / 3})

    assert (moved > 0.5).tolist() == [False, False, True, False, False, True, False]
    assert bool((moved[:3].diff() > 0).all())
    assert bool((moved[3:6].diff() > 0).all())
    assert float(moved[6]) == 0


def test_a_level_moves_the_map_and_one_half_leaves_it() -> None:
    prob, regions = torch.tensor([0.1, 0.3, 0.45, 0.9]), torch.ones(4)

    assert decided(prob.logit(), regions).tolist() == pytest.approx(prob.tolist())
    assert (decided(prob.logit(), regions, 0.4) > 0.5).tolist() == [False, False, True, True]
    assert (decided(prob.logit(), regions, 0.4, {1: 0.0}) > 0.5).tolist() == [False] * 4


def test_a_map_of_one_value_has_no_otsu_cut() -> None:
    assert otsu_cut(torch.full((9,), 0.4)) == 1.0
    assert 0.2 < otsu_cut(torch.tensor([0.1, 0.2, 0.15, 0.8, 0.9])) < 0.8
