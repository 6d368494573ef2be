"""Flips and quarter turns of a volume, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class Turn:
    """Flips along axes of (B, C, X, Y, Z), then quarter turns in the plane; edges and regions stay whole voxels.

    Source: dRAM card sec. 6 (equivariance under flips and 90-degree turns). Deviation: no rescaling.
    """

    flips: tuple[int, ...]
    quarters: int

    @classmethod
    def draw(cls) -> Self:
        """Any of the 15 that change something, by torch's own random state, which a checkpoint keeps.

        A flip along y is one along x and half a turn.
        """
        number = 1 + int(torch.randint(15, (1,)))
        return cls(tuple(axis for bit, axis in enumerate((2, 4)) if number >> bit & 1), number >> 2)

    def apply(self, volume: torch.Tensor) -> torch.Tensor:
        """Turn a volume; in the plane x and y may change places."""
        return torch.rot90(volume.flip(self.flips), self.quarters, (2, 3))

    def undo(self, volume: torch.Tensor) -> torch.Tensor:
        """Turn it back."""
        return torch.rot90(volume, -self.quarters, (2, 3)).flip(self.flips)
