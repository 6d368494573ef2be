"""Training crops of slices and volumes: one resampling for place, turn and size, then changes of the intensities.

All randomness comes from the generator, in a fixed order of draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

SPOTS = 2048  # ours: foreground voxels of each label that are kept to centre crops on
TURN = math.radians(15)  # card sec. 7
SIZE = 0.15  # card sec. 7: scale 0.85-1.15


def foreground_spots(label: torch.Tensor) -> torch.Tensor:
    """Up to `SPOTS` voxels of every label of a mask (1, *grid), spread evenly: rows (label, index along each axis)."""
    rows = []
    for value in torch.unique(label).tolist():
        if value > 0:
            voxels = torch.nonzero(label[0] == value)
            picks = torch.linspace(0, len(voxels) - 1, min(SPOTS, len(voxels))).round().long()
            rows.append(torch.cat([torch.full((len(picks), 1), int(value)), voxels[picks]], dim=1))
    return torch.cat(rows).int() if rows else torch.zeros(0, label.ndim, dtype=torch.int32)


def draw_centre(
    grid: Sequence[int], spots: torch.Tensor | None, foreground: float, generator: torch.Generator
) -> list[int]:
    """A voxel of the grid: any, or with probability `foreground` one of a label that is drawn first."""
    wants, pick, *place = torch.rand(2 + len(grid), generator=generator).tolist()
    row = int(torch.randint(2**31 - 1, (1,), generator=generator))
    if spots is None or not len(spots) or wants >= foreground:
        return [min(int(share * n), n - 1) for share, n in zip(place, grid, strict=True)]
    labels = torch.unique(spots[:, 0])
    found = spots[spots[:, 0] == labels[min(int(pick * len(labels)), len(labels) - 1)]]
    return [int(index) for index in found[row % len(found), 1:]]


def crop(
    tensors: dict[str, torch.Tensor],
    centre: Sequence[float],
    patch: Sequence[int],
    turn: float = 0.0,
    size: float = 1.0,
    flips: Sequence[int] = (),
) -> dict[str, torch.Tensor]:
    """Resample tensors (C, *grid) onto a patch.

    Args:
        tensors: `image` is interpolated linearly, all others by nearest neighbour; outside the grid all are 0.
        centre: voxel in the middle of the patch.
        patch: voxels along each axis.
        turn: rotation in the plane of the first two axes, radians.
        size: above 1 the content appears larger.
        flips: axes to flip.
    """
    grid = next(iter(tensors.values())).shape[1:]
    axes = [torch.arange(p, dtype=torch.float32) - (p - 1) / 2 for p in patch]
    axes = [-values if axis in flips else values for axis, values in enumerate(axes)]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) / size
    first, second = offsets[..., 0].clone(), offsets[..., 1].clone()
    offsets[..., 0] = math.cos(turn) * first - math.sin(turn) * second
    offsets[..., 1] = math.sin(turn) * first + math.cos(turn) * second
    places = offsets + torch.tensor([float(c) for c in centre])
    scaled = (2 * places + 1) / torch.tensor([float(n) for n in grid]) - 1
    where = scaled.flip(-1)[None]  # grid_sample wants the last axis first
    return {
        key: F.grid_sample(
            value[None].float(), where, mode="bilinear" if key == "image" else "nearest", align_corners=False
        )[0].to(value.dtype)
        for key, value in tensors.items()
    }


def fitted_centre(centre: Sequence[float], patch: Sequence[int], grid: Sequence[int]) -> list[float]:
    """The centre moved so far that the patch stays inside the grid; the grid's own centre where the patch is larger.

    It lies between two voxels where the patch has an even length, so that an unturned crop copies voxels.
    """
    result = []
    for c, p, n in zip(centre, patch, grid, strict=True):
        start = min(max(round(c - (p - 1) / 2), 0), n - p) if n >= p else -((p - n) // 2)
        result.append(start + (p - 1) / 2)
    return result


def draw_place(centre: Sequence[int], patch: Sequence[int], generator: torch.Generator) -> list[float]:
    """A patch centre such that `centre` lies in the middle half of the patch."""
    shifts = (torch.rand(len(patch), generator=generator) - 0.5).tolist()
    return [c + shift * p / 2 for c, p, shift in zip(centre, patch, shifts, strict=True)]


def change_intensity(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random contrast, gamma, bias field, noise and resolution of one image (C, *patch); ours, card sec. 7."""
    chance = torch.rand(5, generator=generator).tolist()
    amount = torch.rand(6, generator=generator).tolist()
    axes = image.ndim - 1
    field = torch.randn((1, 1, *(4,) * axes), generator=generator)
    noise = torch.randn(image.shape, generator=generator)
    mode = "bilinear" if axes == 2 else "trilinear"
    if chance[0] < 0.3:
        gamma = math.exp((2 * amount[0] - 1) * 0.4)
        low, span = image.min(), (image.max() - image.min()).clamp_min(1e-6)
        image = ((image - low) / span) ** gamma * span + low
    if chance[1] < 0.5:
        image = image * (0.75 + 0.5 * amount[1]) + 0.4 * (amount[2] - 0.5)
    if chance[2] < 0.3:
        smooth = F.interpolate(field, size=image.shape[1:], mode=mode, align_corners=True)[0]
        image = (image - image.min()) * torch.exp(0.25 * smooth) + image.min()
    if chance[3] < 0.2:
        factor = 1 / (1 + amount[3])
        small = F.interpolate(image[None], scale_factor=factor, mode=mode, align_corners=False)
        image = F.interpolate(small, size=image.shape[1:], mode=mode, align_corners=False)[0]
    if chance[4] < 0.2:
        image = image + 0.15 * amount[4] * noise
    return image
