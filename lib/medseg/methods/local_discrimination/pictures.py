"""Embedding maps as pictures: like colours, like places."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def embedding_colours(maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Colours of embedding maps, by their three common principal components.

    Args:
        maps: (D, *grid) each, of one or several images; a colour means the same in all of them.

    Returns:
        (3, *grid) in [0, 1] each. Equal vectors have equal colours; a map of one vector is grey.
    """
    rows = torch.cat([level.flatten(1).T for level in maps]).float()
    step = max(1, len(rows) // 20000)
    mean = rows[::step].mean(dim=0)
    _, _, axes = torch.linalg.svd(rows[::step] - mean, full_matrices=False)
    axes = axes[:3] * torch.sign(axes[:3].sum(dim=1, keepdim=True) + 1e-9)  # the same picture from the same maps
    scores = (rows[::step] - mean) @ axes.T
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    found = []
    for level in maps:
        values = (level.flatten(1).T.float() - mean) @ axes.T
        width = high - low
        shares = torch.where(width > 1e-6, (values - low) / width.clamp_min(1e-6), 0.5)
        found.append(shares.clamp(0, 1).T.reshape(3, *level.shape[1:]))
    return found
