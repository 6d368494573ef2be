"""Pseudo-labels by rank: of every region, as many voxels as its extent says, the most likely ones first."""

from __future__ import annotations

import torch

IGNORE = 255


def rank_pseudo_label(
    score: torch.Tensor, regions: torch.Tensor, extents: torch.Tensor, band: float = 0.0, least: float = 0.0
) -> torch.Tensor:
    """Mark the top round(r x size) voxels of every region.

    A fixed cut at 0.5 leaves a map that solves the pooled loss with the constant r empty; the rank does not depend on
    the level of the map, only on its order.

    Source: dRAM card sec. 1.8 and 8.1 (ours; the paper's own threshold is not public).

    Args:
        score: (*grid) map, higher is more likely lesion; equal scores are ordered by their position.
        regions: (*grid) whole numbers; 0 is outside and becomes 0.
        extents: (slots,) share r of every region id in [0, 1]; NaN where it is not known, then the region is ignored.
        band: share of voxels on either side of the cut that are ignored, relative to the extent (0.2: the last fifth
            above the cut and as many below it).
        least: further share of the region that is ignored below the cut, where r > 0.

    Returns:
        (*grid) uint8: 1 lesion, 0 none, `IGNORE`.
    """
    label = torch.zeros(regions.shape, dtype=torch.uint8, device=score.device)
    flat_label, flat_score, flat_regions = label.flatten(), score.flatten(), regions.flatten()
    for index in torch.unique(flat_regions).long().tolist():
        if index == 0:
            continue
        voxels = torch.nonzero(flat_regions == index)[:, 0]
        extent = float(extents[index]) if index < len(extents) else float("nan")
        if extent != extent:
            flat_label[voxels] = IGNORE
            continue
        order = voxels[torch.argsort(flat_score[voxels], descending=True, stable=True)]
        count = round(extent * len(voxels))
        margin = round(band * count)
        below = margin + (round(least * len(voxels)) if count else 0)
        flat_label[order[:count]] = 1
        flat_label[order[count - margin : count + below]] = IGNORE
    return flat_label.view(regions.shape)


def clip_to_interval(share: torch.Tensor, low: torch.Tensor, high: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The predicted share moved into its interval; NaN where no interval is known. All (slots,)."""
    clipped = torch.minimum(torch.maximum(share, low), high)
    return torch.where(known, clipped, torch.full_like(clipped, float("nan")))
