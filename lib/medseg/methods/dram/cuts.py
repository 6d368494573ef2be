"""From a map to a decision: which voxels of every region are lesion, and the map moved so that the cut is one half."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from skimage.filters import threshold_otsu

from medseg.losses.rank_pseudo import rank_pseudo_label

EDGE = 0.001
"""Ours: least distance of a decided voxel from one half, so that ties and saturated maps keep their decision."""


def otsu_cut(values: torch.Tensor) -> float:
    """Otsu's threshold; above the largest value where all are equal."""
    array = values.detach().float().cpu().numpy()
    if not len(array) or np.ptp(array) < 1e-6:
        return 1.0
    return float(threshold_otsu(array))


def chosen_by_rank(logits: torch.Tensor, regions: torch.Tensor, extents: Mapping[int, float]) -> torch.Tensor:
    """(*grid) bool: of every region the round(extent x size) voxels that rank first, equal ones by their position.

    Args:
        logits: (*grid); only their order counts, so no map is too sure of itself.
        regions: (*grid) ids.
        extents: share in [0, 1] by id; other regions get nothing.
    """
    table = torch.full((int(regions.max()) + 1,), float("nan"))
    for index, extent in extents.items():
        if index < len(table):
            table[index] = extent
    return rank_pseudo_label(logits, regions, table) == 1


def decided(
    logits: torch.Tensor, regions: torch.Tensor, level: float = 0.5, extents: Mapping[int, float] | None = None
) -> torch.Tensor:
    """The map as a probability, moved region by region on the logit scale so that its decision lies at one half.

    Order and steepness stay; after resampling, "more likely than not" is still the decision.

    Args:
        logits: (*grid).
        regions: (*grid) ids; 0 becomes 0.
        level: probability above which a voxel is lesion.
        extents: regions that are cut by rank instead, with their share.
    """
    extents = extents or {}
    cut = torch.logit(torch.tensor(level, dtype=torch.float64).clamp(1e-6, 1 - 1e-6))
    moved = torch.sigmoid(logits - cut.to(logits.dtype))
    chosen = chosen_by_rank(logits, regions, extents)
    for index in extents:
        inside = regions == index
        moved[inside] = _parted(logits[inside], chosen[inside])
    return moved * (regions > 0)


def _parted(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Probabilities of one region: above one half for the chosen voxels, below it for the others."""
    cut = logits.new_zeros(())
    if bool(chosen.any()) and not bool(chosen.all()):
        cut = (logits[chosen].min() + logits[~chosen].max()) / 2
    moved = torch.sigmoid(logits - cut)
    return torch.where(chosen, moved.clamp_min(0.5 + EDGE), moved.clamp_max(0.5 - EDGE))
