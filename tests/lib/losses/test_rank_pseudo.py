from __future__ import annotations

import pytest
import torch

from medseg.losses.rank_pseudo import IGNORE, clip_to_interval, rank_pseudo_label


@pytest.mark.parametrize("extent", [0.0, 0.07, 0.5, 0.9, 1.0])
def test_reproduces_the_extent_to_one_voxel(extent: float) -> None:
    score, regions = torch.rand(6, 7, 5), torch.randint(1, 3, (6, 7, 5))

    label = rank_pseudo_label(score, regions, torch.tensor([0.0, extent, 0.0]))

    size = int((regions == 1).sum())
    assert int((label[regions == 1] == 1).sum()) == round(extent * size)
    assert int((label[regions == 2] != 0).sum()) == 0


def test_highest_voxels_are_marked_and_equal_maps_too() -> None:
    score = torch.tensor([0.1, 0.9, 0.4, 0.8])

    assert rank_pseudo_label(score, torch.ones(4), torch.tensor([0.0, 0.5])).tolist() == [0, 1, 0, 1]
    assert int(rank_pseudo_label(torch.full((4,), 0.2), torch.ones(4), torch.tensor([0.0, 0.5])).sum()) == 2


def test_band_around_the_cut_is_ignored() -> None:
    score = torch.arange(100.0)

    label = rank_pseudo_label(score, torch.ones(100), torch.tensor([0.0, 0.4]), band=0.25)

    assert label[70:].tolist() == [1] * 30
    assert label[50:70].tolist() == [IGNORE] * 20
    assert label[:50].tolist() == [0] * 50


def test_unknown_regions_are_ignored_and_outside_is_zero() -> None:
    label = rank_pseudo_label(torch.rand(4), torch.tensor([0, 1, 1, 2]), torch.tensor([0.0, float("nan"), 1.0]))

    assert label.tolist() == [0, IGNORE, IGNORE, 1]


def test_clip_to_interval() -> None:
    share, low, high = torch.tensor([0.1, 0.3, 0.9]), torch.tensor([0.2, 0.2, 0.2]), torch.tensor([0.4, 0.4, 0.4])

    clipped = clip_to_interval(share, low, high, torch.tensor([True, True, False]))

    assert clipped[:2].tolist() == pytest.approx([0.2, 0.3])
    assert bool(clipped[2].isnan())
