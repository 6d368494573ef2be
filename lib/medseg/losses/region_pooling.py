"""The mean of a map over every region of a mask, in one pass."""

from __future__ import annotations

import torch


def region_means(values: torch.Tensor, regions: torch.Tensor, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over regions, by scatter-add, in float32 also under autocast (half-precision sums overflow at 65504).

    Source: Xie et al., arXiv 2105.11748; dRAM card sec. 3 (r is the mean of p over the region).

    Args:
        values: (B, 1, *grid).
        regions: (B, 1, *grid) whole numbers in 0..slots - 1; 0 is outside.
        slots: number of ids, 0 included.

    Returns:
        Means (B, slots), 0 for empty regions, and voxel counts (B, slots). Slot 0 holds what is outside.

    Raises:
        ValueError: the shapes differ.
    """
    if values.shape != regions.shape or values.shape[1] != 1:
        raise ValueError(f"values {tuple(values.shape)} and regions {tuple(regions.shape)} must both be (B, 1, *grid)")
    with torch.autocast(values.device.type, enabled=False):
        flat = values.flatten(1)
        flat = flat if flat.dtype == torch.float64 else flat.float()
        index = regions.flatten(1).long()
        empty = torch.zeros(flat.shape[0], slots, dtype=flat.dtype, device=flat.device)
        counts = empty.scatter_add(1, index, torch.ones_like(flat))
        return empty.scatter_add(1, index, flat) / counts.clamp_min(1), counts
