"""Moving tensors between grids: the image's own grid, and the grid a network works on.

A grid is a shape and an affine. Everything that is resampled carries its affine along, so a prediction finds back to
its image whatever the orientation, obliqueness and spacing were.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Orientation, SpatialResample


def spacing_of(image: MetaTensor) -> tuple[float, ...]:
    """Voxel size along each spatial axis, in the affine's unit (mm for volumes, px for pictures)."""
    rank = image.ndim - 1
    matrix = image.affine[:rank, :rank]
    return tuple(float(s) for s in torch.linalg.vector_norm(matrix.double(), dim=0))


def to_canonical(image: MetaTensor) -> MetaTensor:
    """Flip and permute the axes of a volume (C, D, H, W) to the nearest RAS order; pictures stay as they are."""
    if image.ndim != 4:
        return image
    canonical = Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(image)
    assert isinstance(canonical, MetaTensor)
    return canonical


def axis_last(image: MetaTensor, axis: int) -> MetaTensor:
    """Move a spatial axis to the end; the affine follows."""
    axes = image.ndim - 1
    axis %= axes
    if axis == axes - 1:
        return image
    order = [*(a for a in range(axes) if a != axis), axis]
    plain = image.as_tensor().permute(0, *(1 + a for a in order)).contiguous()
    return MetaTensor(plain, affine=image.affine[:, [*order, axes]])


def resize(image: MetaTensor, size: Sequence[int], mode: str = "linear") -> MetaTensor:
    """Resample to another number of voxels over the same field of view (edges aligned).

    Args:
        image: (C, *grid).
        size: new grid.
        mode: "linear", or "label" for whole-number masks: every label is resampled linearly and the largest share
            wins, which keeps thin structures better than nearest neighbour.
    """
    size = tuple(int(s) for s in size)
    if size == tuple(image.shape[1:]):
        return image
    plain = image.as_tensor()
    result = _resize_label(plain, size) if mode == "label" else _interpolate(plain.float(), size)
    old = torch.tensor(image.shape[1:], dtype=torch.float64)
    factor = old / torch.tensor(size, dtype=torch.float64)
    step = torch.eye(len(size) + 1, dtype=torch.float64)
    step[:-1, :-1] = torch.diag(factor)
    step[:-1, -1] = (factor - 1) / 2
    return MetaTensor(result, affine=image.affine.double() @ step)


def size_at(image: MetaTensor, spacing: Sequence[float]) -> tuple[int, ...]:
    """Number of voxels that cover the image's field of view at `spacing`; at least 1 along each axis."""
    own = spacing_of(image)
    return tuple(max(1, round(n * s / t)) for n, s, t in zip(image.shape[1:], own, spacing, strict=True))


def to_grid(tensor: MetaTensor, like: MetaTensor, mode: str = "linear") -> MetaTensor:
    """Resample onto another image's grid by the affines of both.

    Args:
        tensor: (C, *grid).
        like: any tensor (C', *grid') with the wanted shape and affine.
        mode: "linear" or "nearest". Outside the field of view, the nearest value inside is taken for "linear" and 0
            for "nearest".
    """
    shape = tuple(like.shape[1:])
    if same_grid(tensor, like):
        return tensor
    resample = SpatialResample(
        mode="bilinear" if mode == "linear" else "nearest",
        padding_mode="border" if mode == "linear" else "zeros",
        align_corners=False,
        dtype=np.float32,
    )
    result = resample(tensor, dst_affine=like.affine, spatial_size=shape)
    assert isinstance(result, MetaTensor)
    plain = result.as_tensor()
    return MetaTensor(plain if mode == "linear" else plain.round().to(tensor.dtype), affine=like.affine)


def same_grid(a: MetaTensor, b: MetaTensor, tolerance: float = 0.02) -> bool:
    """Whether two tensors have the same shape and put every voxel within `tolerance` of a voxel at the same place.

    The corners decide: entries of the affines that differ by a hair may put the far end of a large volume elsewhere.
    """
    shape = tuple(a.shape[1:])
    if shape != tuple(b.shape[1:]):
        return False
    rank = len(shape)
    corners = torch.cartesian_prod(*(torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in shape))
    places = [corners @ t.affine.double()[:rank, :rank].T + t.affine.double()[:rank, -1] for t in (a, b)]
    apart = torch.linalg.solve(a.affine.double()[:rank, :rank], (places[0] - places[1]).T)
    return bool(apart.abs().max() <= tolerance)


def _interpolate(image: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Linear interpolation that leaves out no voxel: below half a volume's size, linear weights would skip some."""
    shape = tuple(image.shape[1:])
    if len(size) == 2:
        shrinks = any(n < o for n, o in zip(size, shape, strict=True))
        return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=shrinks)[0]
    coarse = tuple(o if o > 2 * n + 1 else n for n, o in zip(size, shape, strict=True))  # 145 to 72 is a half, too
    found = F.interpolate(image[None], size=coarse, mode="trilinear", align_corners=False)
    return (found if coarse == size else F.interpolate(found, size=size, mode="area"))[0]


def _resize_label(mask: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    best = torch.full((1, *size), -1.0)
    winner = torch.zeros((1, *size), dtype=mask.dtype)
    for value in torch.unique(mask).tolist():
        share = _interpolate((mask == value).float(), size)
        better = share > best
        best = torch.where(better, share, best)
        winner = torch.where(better, torch.tensor(value, dtype=mask.dtype), winner)
    return winner
