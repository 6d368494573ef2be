"""From a map to a decision: where every region is cut, and the map moved so that the cut lies at one half."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from skimage.filters import threshold_otsu

EPSILON = 1e-4


def rank_cuts(prob: torch.Tensor, regions: torch.Tensor, extents: Mapping[int, float]) -> dict[int, float]:
    """For every region the value above which round(extent x size) voxels lie; 1 where that is none, 0 where all.

    Args:
        prob: (*grid) in [0, 1].
        regions: (*grid) ids.
        extents: share in [0, 1] by id.
    """
    cuts = {}
    for index, extent in extents.items():
        values = torch.sort(prob[regions == index], descending=True).values
        count = round(extent * len(values))
        if count <= 0 or not len(values):
            cuts[index] = 1.0
        elif count >= len(values):
            cuts[index] = 0.0
        else:
            cuts[index] = float(values[count - 1] + values[count]) / 2
    return cuts


def otsu_cut(values: torch.Tensor) -> float:
    """Otsu's threshold; above the largest value where all are equal."""
    array = values.detach().float().cpu().numpy()
    if not len(array) or np.ptp(array) < 1e-6:
        return 1.0
    return float(threshold_otsu(array))


def centred(prob: torch.Tensor, regions: torch.Tensor, cuts: Mapping[int, float]) -> torch.Tensor:
    """The map moved, region by region on the logit scale, so that every region's cut lies at one half.

    Order and steepness stay; after resampling, "more likely than not" is still the rank's decision.
    """
    table = torch.full((int(regions.max()) + 1,), 0.5)
    for index, value in cuts.items():
        if index < len(table):
            table[index] = value
    cut = table.to(prob.device)[regions.long()]
    inner = cut.clamp(EPSILON, 1 - EPSILON)
    moved = torch.sigmoid(torch.logit(prob.clamp(EPSILON, 1 - EPSILON)) - torch.logit(inner))
    moved = torch.where(cut >= 1, moved.clamp_max(0.49), moved)  # nothing of the region
    return torch.where(cut <= 0, moved.clamp_min(0.51), moved)  # all of it
