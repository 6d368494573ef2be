from __future__ import annotations

import pytest
import torch

from medseg.methods.dram.cuts import centred, otsu_cut, rank_cuts


@pytest.mark.parametrize("extent", [0.0, 0.1, 0.33, 1.0])
def test_the_rank_cut_reproduces_the_extent_to_one_voxel(extent: float) -> None:
    torch.manual_seed(0)
    prob, regions = 0.2 + 0.1 * torch.rand(8, 8, 4), torch.ones(8, 8, 4, dtype=torch.uint8)

    moved = centred(prob, regions, rank_cuts(prob, regions, {1: extent}))

    assert abs(int((moved > 0.5).sum()) - round(extent * 256)) <= 1


def test_regions_have_cuts_of_their_own_and_order_stays() -> None:
    prob = torch.tensor([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    regions = torch.tensor([1, 1, 1, 2, 2, 2])

    moved = centred(prob, regions, rank_cuts(prob, regions, {1: 1 / 3, 2: 1 / 3}))

    assert (moved > 0.5).tolist() == [False, False, True, False, False, True]
    assert bool((moved[:3].diff() > 0).all())
    assert bool((moved[3:].diff() > 0).all())


def test_a_map_of_one_value_has_no_otsu_cut() -> None:
    assert otsu_cut(torch.full((9,), 0.4)) == 1.0
    assert 0.2 < otsu_cut(torch.tensor([0.1, 0.2, 0.15, 0.8, 0.9])) < 0.8
