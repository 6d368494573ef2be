"""Chest phantoms: two lungs in HU with vessels, and lesions of an exact percentage in every region.

Shapes live in shares of the field of view, so any grid works. Lesions are blobs of ground glass; vessels and round
distractors are as bright and belong to healthy lung, so no threshold finds the lesions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from medseg.errors import MedsegError
from medseg.phantoms.noise import smooth_noise

AIR, LUNG, TISSUE, LESION = -1000.0, -850.0, 40.0, -350.0  # HU
LABELS = {"lung": 1, "lesion": 2}
REGIONS = 6
TEXTURE = (7, 7, 5)  # bumps of the lesions' field along each axis


class Chest(NamedTuple):
    """A phantom.

    Attributes:
        image: (X, Y, Z) float32 HU.
        mask: (X, Y, Z) uint8, 1 lung, 2 lesion.
        regions: (X, Y, Z) uint8, 1..3 the left lung's thirds from below, 4..6 the right one's.
        affine: voxel index to RAS mm, (4, 4).
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    regions: NDArray[np.uint8]
    affine: NDArray[np.float64]


def make_chest(
    seed: int,
    shape: Sequence[int] = (64, 48, 24),
    percent: Sequence[float] | None = None,
    *,
    noise: float = 40.0,
    distractors: int = 6,
    central: bool = False,
    spacing: Sequence[float] = (5.0, 5.0, 10.0),
) -> Chest:
    """Draw one subject; equal arguments give an equal phantom.

    Args:
        seed: of everything random.
        shape: voxels along x, y and z, at least 16 x 16 x 6.
        percent: lesion percentage of the six regions, exact to one voxel; None: drawn, a third of them 0.
        noise: standard deviation in HU.
        distractors: round bright spots per lung that are no lesion.
        central: lesions lie deep in the lung, among the vessels, instead of at the pleura.
        spacing: mm per voxel.

    Raises:
        MedsegError: a shape too small, or percentages that are not six numbers in 0..100.
    """
    if len(shape) != 3 or shape[0] < 16 or shape[1] < 16 or shape[2] < 6:
        raise MedsegError(f"shape {tuple(shape)} is too small for a chest; give at least 16 x 16 x 6 voxels")
    rng = np.random.default_rng(seed)
    drawn = np.where(rng.random(REGIONS) < 1 / 3, 0.0, 60 * rng.random(REGIONS) ** 2 + 2)
    extents = drawn if percent is None else np.asarray(percent, float)
    if extents.shape != (REGIONS,) or extents.min() < 0 or extents.max() > 100:
        raise MedsegError(f"percent {list(extents)} must be {REGIONS} numbers in 0..100")
    frame = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in shape], indexing="ij"))
    regions = _regions(rng, frame)
    lesion = _lesions(rng, regions, extents, central)
    image = np.where(_ellipsoid(frame, (0, 0, 0), (0.5, 0.5, 2.0)), TISSUE, AIR)
    image[regions > 0] = LUNG
    bright = (_vessels(rng, frame) | _spots(rng, frame, distractors)) & (regions > 0) & ~lesion
    image[bright] = LESION + 100 * rng.normal()
    image[lesion] = LESION + 60 * smooth_noise(rng, shape, TEXTURE)[lesion]
    image = gaussian_filter(image, (0.6, 0.6, 0.3)) + noise * rng.normal(size=tuple(shape))
    mask = np.where(lesion, 2, np.where(regions > 0, 1, 0)).astype(np.uint8)
    affine = np.diag([*map(float, spacing), 1.0])
    return Chest(image.astype(np.float32), mask, regions, affine)


def true_percent(chest: Chest) -> dict[int, float]:
    """Percentage of lesion in every region."""
    return {index: float(100 * (chest.mask[chest.regions == index] == 2).mean()) for index in range(1, REGIONS + 1)}


def _ellipsoid(frame: NDArray[np.float64], centre: Sequence[float], radii: Sequence[float]) -> NDArray[np.bool_]:
    return sum(((frame[i] - centre[i]) / radii[i]) ** 2 for i in range(3)) < 1


def _regions(rng: np.random.Generator, frame: NDArray[np.float64]) -> NDArray[np.uint8]:
    regions = np.zeros(frame.shape[1:], np.uint8)
    filled = np.flatnonzero(np.abs(frame[2, 0, 0]) < 0.46)
    low, high = filled[0], filled[-1] + 1
    slab = np.clip((np.arange(frame.shape[3]) - low) * 3 // (high - low), 0, 2)
    inside = np.abs(frame[2]) < 0.46
    for side, sign in ((0, -1), (1, 1)):
        radii = (0.15 * rng.uniform(0.9, 1.1), 0.3 * rng.uniform(0.9, 1.1), 0.9)
        lung = _ellipsoid(frame, (sign * 0.24, rng.uniform(-0.03, 0.03), 0.1), radii) & inside
        regions[lung] = (3 * side + slab + 1)[np.nonzero(lung)[2]]
    return regions


def _lesions(
    rng: np.random.Generator, regions: NDArray[np.uint8], percent: NDArray[np.float64], central: bool
) -> NDArray[np.bool_]:
    """The voxels where a smooth field is highest, as many of every region as its percentage says.

    The field falls off from the pleura inwards, as ground glass does; or it rises (`central`).
    """
    depth = np.stack([distance_transform_edt(plane) for plane in np.moveaxis(regions > 0, 2, 0)], axis=2)
    field = smooth_noise(rng, regions.shape, TEXTURE) + (1.5 if central else -1.5) * depth / max(depth.max(), 1.0)
    lesion = np.zeros(regions.shape, bool)
    for index, value in enumerate(percent, start=1):
        voxels = np.flatnonzero(regions == index)
        count = round(len(voxels) * value / 100)
        lesion.flat[voxels[np.argsort(-field.flat[voxels], kind="stable")[:count]]] = True
    return lesion


def _vessels(rng: np.random.Generator, frame: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Thin tubes from the hilum of each lung outwards."""
    found = np.zeros(frame.shape[1:], bool)
    for sign in (-1, 1):
        start = np.array([sign * 0.12, 0.0, 0.0])
        for _ in range(7):
            direction = rng.normal(size=3) * (1, 1.5, 1) + (sign * 1.0, 0, 0)
            direction /= np.linalg.norm(direction)
            moved = frame - start.reshape(3, 1, 1, 1)
            along = np.tensordot(direction, moved, axes=1)
            across = np.sqrt(np.maximum((moved**2).sum(axis=0) - along**2, 0))
            found |= (along > 0) & (along < 0.4) & (across < 0.014)
    return found


def _spots(rng: np.random.Generator, frame: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Small balls of a lesion's brightness, for example calcified nodules."""
    found = np.zeros(frame.shape[1:], bool)
    for _ in range(2 * count):
        centre = rng.uniform((-0.4, -0.35, -0.45), (0.4, 0.35, 0.45))
        found |= _ellipsoid(frame, tuple(centre), (0.022, 0.03, 0.05))
    return found
