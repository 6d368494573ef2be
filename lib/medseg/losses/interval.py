"""The interval loss: nothing inside [low, high], growing outside."""

from __future__ import annotations

import torch
from torch import nn


class IntervalLoss(nn.Module):
    """Hinge-Huber distance of a predicted share from the interval that a reader gave.

    e = max(f(low) - f(r), f(r) - f(high), 0), loss = huber(e) / max(f(high) - f(low), tolerance), averaged over regions
    with their weights; f(y) = (y + 0.001)^power evens out small shares.

    Source: Bortsova et al., arXiv 1807.08601 (interval loss); dRAM card sec. 6 (power of the sequel, 0.001 against the
    infinite slope at 0).
    Deviation: the released product (r - low)(r - high) pushes harder at the edge of wide bins; ours does not, and
    divides by the width once.

    Args:
        power: of f, in (0, 1].
        tolerance: least width that a difference is divided by, in units of f.
        delta: where the Huber loss turns from square to straight, in units of f.
    """

    def __init__(self, power: float = 0.5, tolerance: float = 0.1, delta: float = 0.1) -> None:
        super().__init__()
        if not 0 < power <= 1 or tolerance <= 0 or delta <= 0:
            raise ValueError(f"power {power} must lie in (0, 1], tolerance {tolerance} and delta {delta} be positive")
        self.power, self.tolerance, self.delta = power, tolerance, delta

    def forward(self, share: torch.Tensor, low: torch.Tensor, high: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Scalar loss; 0 where no region has a weight.

        Args:
            share: predicted shares in [0, 1], any shape.
            low: lower bounds, same shape.
            high: upper bounds, same shape.
            weight: of every region, 0 for regions that are unknown, cut or empty.
        """
        with torch.autocast(share.device.type, enabled=False):
            r, a, b = (self._level(x if x.dtype == torch.float64 else x.float()) for x in (share, low, high))
            outside = torch.maximum(a - r, r - b).clamp_min(0)
            huber = torch.where(outside < self.delta, 0.5 * outside**2 / self.delta, outside - 0.5 * self.delta)
            loss = huber / (b - a).clamp_min(self.tolerance)
            return (loss * weight).sum() / weight.sum().clamp_min(1e-6)

    def _level(self, share: torch.Tensor) -> torch.Tensor:
        return (share.clamp_min(0) + 1e-3) ** self.power
