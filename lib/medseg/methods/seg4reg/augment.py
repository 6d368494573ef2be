"""Augmentation that leaves Cobb angles as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

TURN = 10.0
"""Degrees; up to 10 degrees cost SMAPE 0.08 (Seg4Reg card sec. 6)."""

ZOOM = (0.9, 1.12)
"""Ours: both axes alike. An anisotropic zoom to 1024 x 512 costs SMAPE 12.58 (card) and is not done."""

SHIFT = 0.04
"""Ours: share of the height."""


@dataclass(frozen=True)
class Placement:
    """Where a picture lies on the networks' grid.

    Attributes:
        turn: degrees; positive lets the right side sink.
        zoom: of both axes.
        shift: pixels of the grid.
        mirror: left and right exchanged.
    """

    turn: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    mirror: bool = False


def draw_placement(height: int, generator: torch.Generator) -> Placement:
    """A random placement for a picture of `height` rows; see `keep_inside` for what it may cut off."""
    turn, zoom, x, y, flip = torch.rand(5, generator=generator).tolist()
    return Placement(
        turn=(2 * turn - 1) * TURN,
        zoom=ZOOM[0] + zoom * (ZOOM[1] - ZOOM[0]),
        shift=((2 * x - 1) * SHIFT * height, (2 * y - 1) * SHIFT * height),
        mirror=flip < 0.5,
    )


def keep_inside(
    placement: Placement, points: torch.Tensor | None, shape: Sequence[int], size: tuple[int, int]
) -> Placement:
    """A placement with a smaller zoom and another shift where it would cut off vertebrae, whose angles are the label.

    Args:
        placement: as drawn.
        points: (N, 2) pixels of the picture that must stay on the grid; None: nobody knows where the vertebrae are, and
            the whole picture stays on it.
        shape: (x, y) of the picture.
        size: (x, y) of the grid.
    """
    room = torch.tensor(size, dtype=torch.float32) - 1
    if points is None:
        zoom = min(placement.zoom, 1.0, *(n / m for n, m in zip(size, shape, strict=True)))
        reach = ((room + 1 - zoom * torch.tensor(shape)) / 2).clamp_min(0).tolist()
        x, y = (min(max(move, -far), far) for move, far in zip(placement.shift, reach, strict=True))
        return replace(placement, zoom=zoom, shift=(x, y))
    moved = move_points(points, shape, size, replace(placement, shift=(0.0, 0.0)))
    share = float((room / (moved.amax(dim=0) - moved.amin(dim=0)).clamp_min(1)).min().clamp_max(1))
    smaller = replace(placement, zoom=placement.zoom * share, shift=(0.0, 0.0))
    moved = move_points(points, shape, size, smaller)
    wanted = torch.tensor(placement.shift)
    x, y = torch.minimum(torch.maximum(wanted, -moved.amin(dim=0)), room - moved.amax(dim=0)).tolist()
    return replace(smaller, shift=(x, y))


def move_points(
    points: torch.Tensor, shape: Sequence[int], size: tuple[int, int], placement: Placement
) -> torch.Tensor:
    """Where `place` brings pixels (N, 2) of a picture of `shape` on a grid of `size`."""
    x, y = (points.float() - (torch.tensor(shape) - 1) / 2).unbind(dim=1)
    x = -x if placement.mirror else x
    cos, sin = (f(math.radians(placement.turn)) * placement.zoom for f in (math.cos, math.sin))
    centre = (torch.tensor(size) - 1) / 2 + torch.tensor(placement.shift)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=1) + centre


def back_matrix(shape: Sequence[int], size: tuple[int, int], placement: Placement) -> torch.Tensor:
    """(2, 3) matrix from pixels of the grid to those of the picture, the inverse of `move_points`."""
    turn = torch.tensor(_turn_back(placement))
    centre = (torch.tensor(size) - 1) / 2 + torch.tensor(placement.shift)
    return torch.cat([turn, ((torch.tensor(shape) - 1) / 2 - turn @ centre)[:, None]], dim=1)


def place(tensor: torch.Tensor, size: tuple[int, int], placement: Placement, mode: str = "bilinear") -> torch.Tensor:
    """Resample a picture (C, x, y) onto a grid (C, *size), middle on middle; zeros outside.

    Args:
        tensor: to resample.
        size: (x, y) of the grid.
        placement: how it is turned, zoomed, shifted and mirrored, in this order seen from the grid's side.
        mode: "bilinear" or "nearest".
    """
    x, y = torch.meshgrid(torch.arange(float(size[0])), torch.arange(float(size[1])), indexing="ij")
    x, y = x - (size[0] - 1) / 2 - placement.shift[0], y - (size[1] - 1) / 2 - placement.shift[1]
    (xx, xy), (yx, yy) = _turn_back(placement)
    x, y = xx * x + xy * y, yx * x + yy * y
    half = [n / 2 for n in tensor.shape[1:]]
    grid = torch.stack([y / half[1], x / half[0]], dim=-1)  # grid_sample names the last axis first
    return F.grid_sample(tensor[None].float(), grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0]


def _turn_back(placement: Placement) -> list[list[float]]:
    """2 x 2 matrix from the grid's axes to the picture's, both counted from where their middles meet."""
    cos, sin = (f(math.radians(placement.turn)) / placement.zoom for f in (math.cos, math.sin))
    side = -1.0 if placement.mirror else 1.0
    return [[side * cos, side * sin], [-sin, cos]]


def moved_tilts(tilts: torch.Tensor, placement: Placement) -> torch.Tensor:
    """Tilts in degrees of a picture's vertebrae, as they are after `place`."""
    return (-tilts if placement.mirror else tilts) + placement.turn


def change_contrast(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random brightness, contrast, gamma-like bend and noise of (C, x, y) with mean 0 and spread 1."""
    a, b, c, d = torch.rand(4, generator=generator).tolist()
    image = image * (0.75 + 0.5 * a) + (0.6 * b - 0.3)
    image = image + (0.3 * c - 0.15) * (image**2 - 1).clamp(-2, 4)
    return image + 0.12 * d * torch.randn(image.shape, generator=generator)
