"""Every voxel's neighbours as shifted tensors: what local attention and the windowed CRF are made of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch.nn import functional as F

Offset = tuple[int, ...]


def window_offsets(radius: int, dimension: int = 3) -> tuple[Offset, ...]:
    """The (2 radius + 1)^dimension - 1 neighbours in a cube, centre left out: 26 for radius 1 in 3D."""
    span = range(-radius, radius + 1)
    return tuple(o for o in itertools.product(span, repeat=dimension) if any(o))


def near_offsets(dimension: int = 3) -> tuple[Offset, ...]:
    """The neighbours that share a face or an edge: 18 in 3D, 8 in 2D."""
    return tuple(o for o in window_offsets(1, dimension) if sum(map(abs, o)) <= 2)


def shifted(tensor: torch.Tensor, offsets: Sequence[Offset]) -> list[torch.Tensor]:
    """Views of a zero-padded tensor, one per offset: entry j at voxel i is the tensor at i + offsets[j].

    Args:
        tensor: (B, C, *grid).
        offsets: steps along each axis of the grid.

    Returns:
        Tensors (B, C, *grid); 0 beyond the border.
    """
    grid = tensor.shape[2:]
    reach = [max(abs(o[axis]) for o in offsets) for axis in range(len(grid))]
    padded = F.pad(tensor, [side for r in reversed(reach) for side in (r, r)])
    views = []
    for offset in offsets:
        window: tuple[slice, ...] = tuple(
            slice(r + step, r + step + n) for r, step, n in zip(reach, offset, grid, strict=True)
        )
        views.append(padded[(slice(None), slice(None), *window)])
    return views


def gather(tensor: torch.Tensor, offsets: Sequence[Offset]) -> torch.Tensor:
    """(B, 1, *grid) to (B, J, *grid): the value at every neighbour."""
    return torch.cat(shifted(tensor, offsets), dim=1)
