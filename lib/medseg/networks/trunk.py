"""What self-supervised pretraining needs to know of a network: its decoder maps, whatever its levels halve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class Trunk(nn.Module):
    """An encoder-decoder whose decoder maps can be read.

    Attributes:
        widths: channels of the maps, fine to coarse.
        strides: image voxels per cell of each map, one number per axis.
    """

    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Decoder maps of images of any grid, fine to coarse.

        Args:
            image: (B, C, *grid).

        Returns:
            Map i is (B, widths[i], *cells) with grid / strides[i] cells, rounded up.
        """
        raise NotImplementedError


class SlicewiseTrunk(Trunk):
    """A 2D trunk applied to every slice of a volume: (B, C, x, y, z), the last axis is never halved.

    Args:
        flat: the 2D trunk.
    """

    def __init__(self, flat: Trunk) -> None:
        super().__init__()
        self.flat = flat
        self.widths = flat.widths
        self.strides = tuple((*stride, 1) for stride in flat.strides)

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """As `Trunk.maps`."""
        batch, depth = image.shape[0], image.shape[-1]
        slices = image.movedim(-1, 1).flatten(0, 1)
        return [level.unflatten(0, (batch, depth)).movedim(1, -1) for level in self.flat.maps(slices)]


def pad_to_multiple(image: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Repeat the far border of (B, C, *grid) until `factors` divide the grid."""
    missing = [-n % factor for n, factor in zip(image.shape[2:], factors, strict=True)]
    if not any(missing):
        return image
    return F.pad(image, [side for m in reversed(missing) for side in (0, m)], mode="replicate")


def without_padding(
    maps: Sequence[torch.Tensor], grid: Sequence[int], strides: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """Maps without the cells that lie wholly in what `pad_to_multiple` added to a grid."""
    return [
        level[(slice(None), slice(None), *(slice(-(-n // s)) for n, s in zip(grid, stride, strict=True)))]
        for level, stride in zip(maps, strides, strict=True)
    ]
