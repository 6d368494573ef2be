"""Distance between sets of angles, of which some may be unknown: the SMAPE ratio with a little L1."""

from __future__ import annotations

import torch

FLOOR = 0.05
"""Smallest denominator in the angles' unit, so that straight spines do not outweigh all others; ours."""


def angle_loss(found: torch.Tensor, target: torch.Tensor, known: torch.Tensor, l1_weight: float = 0.1) -> torch.Tensor:
    """Mean over images of sum |p - g| / sum (p + g), plus `l1_weight` times the mean |p - g|.

    Args:
        found: (B, K), not negative.
        target: (B, K), not negative; values that are not known do not matter, even NaN.
        known: (B, K), 1 where the target is known. Images without any known angle count neither as loss nor in the
            mean.
        l1_weight: of the second part.

    Returns:
        Scalar; 0, with a gradient of 0, when nothing is known.

    Source: Seg4Reg card sec. 6 (SMAPE ratio + 0.1 L1), sec. 3 for the image-wise ratio.
    """
    known = known.to(found.dtype)
    target = torch.where(known > 0, target, torch.zeros_like(target)).to(found.dtype)
    error = (found - target).abs() * known
    total = ((found + target) * known).sum(dim=1).clamp_min(FLOOR)
    images = (known.sum(dim=1) > 0).to(found.dtype)
    ratio = (error.sum(dim=1) / total * images).sum() / images.sum().clamp_min(1)
    return ratio + l1_weight * error.sum() / known.sum().clamp_min(1)
