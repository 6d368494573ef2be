"""Losses of one-channel maps: entropy, cross-entropy and Dice with ignored voxels, equivariance."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def binary_entropy(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean entropy of sigmoid(logits) over the mask, in units of ln 2: 1 at p = 0.5, 0 where the map is decided."""
    logits = logits.float()
    prob = torch.sigmoid(logits)
    entropy = (F.softplus(logits) - prob * logits) / 0.6931471805599453
    return (entropy * mask).sum() / mask.sum().clamp_min(1)


def balanced_cross_entropy(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the known voxels; the rarer class weighs more, within 0.25..0.75.

    Source: dRAM card sec. 4 (positive weight = clamp(1 - positive share, 0.25, 0.75), normalised by summed weights).

    Args:
        logits: (B, 1, *grid).
        target: (B, 1, *grid) in {0, 1} where known.
        known: (B, 1, *grid), 0 for voxels that do not count.
    """
    logits, positive = logits.float(), (target == 1).float()
    share = (positive * known).sum() / known.sum().clamp_min(1)
    high = (1 - share).clamp(0.25, 0.75)
    weight = known * torch.where(positive > 0, high, 1 - high)
    loss = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    return (loss * weight).sum() / weight.sum().clamp_min(1e-6)


def binary_dice_ce(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Soft Dice plus mean cross-entropy over the known voxels; arguments as above. Nothing known: 0."""
    logits, positive = logits.float(), (target == 1).float()
    prob = torch.sigmoid(logits) * known
    truth = positive * known
    dice = 1 - (2 * (prob * truth).sum() + 1) / (prob.sum() + truth.sum() + 1)
    loss = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    return dice + (loss * known).sum() / known.sum().clamp_min(1)


def equivariance(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Smooth-L1 distance of T(p(x)) and p(T(x)) over the mask, both given as probabilities on the turned grid.

    Source: dRAM card sec. 6 (smooth-L1).
    """
    difference = F.smooth_l1_loss(first.float(), second.float(), reduction="none", beta=0.1)
    return (difference * mask).sum() / mask.sum().clamp_min(1)
