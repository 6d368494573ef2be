"""Draw a fixed number of random elements from every group of a large set, entirely on its device."""

from __future__ import annotations

import torch

_NOISE = 2**32


def sample_groups(group: torch.Tensor, groups: int, quota: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to `quota` random elements of each group, without replacement.

    One sort by (group, random number) brings every group together in random order; shapes do not depend on the data,
    so a GPU never has to report a count. The result depends on torch's random state of the device alone.

    Args:
        group: (N,) integers; elements outside 0..groups-1 belong to no group.
        groups: number of groups.
        quota: elements wanted per group.

    Returns:
        Indices into the set (groups, quota), and which of them are real (groups, quota) bool; in each row the real ones
        come first. The others point to some valid position and must be masked.
    """
    count = group.shape[0]
    if count == 0:
        nothing = torch.zeros(groups, quota, dtype=torch.long, device=group.device)
        return nothing, nothing.bool()
    known = torch.where((group >= 0) & (group < groups), group, groups).long()
    order = (known * _NOISE + torch.randint(_NOISE, (count,), device=group.device)).argsort()
    sizes = torch.zeros(groups + 1, dtype=torch.long, device=group.device)
    sizes = sizes.scatter_add_(0, known, torch.ones_like(known))
    starts = (sizes.cumsum(0) - sizes)[:groups, None]
    offsets = torch.arange(quota, device=group.device)[None]
    index = order[(starts + offsets).clamp_max(count - 1)]
    return index, offsets < sizes[:groups, None]
