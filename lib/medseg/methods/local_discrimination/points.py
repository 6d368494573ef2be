"""Landmarks of a case as voxels of the network's grid, and back to world coordinates."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.data import MetaTensor

from medseg.cases import Case

log = logging.getLogger(__name__)

SPACING_COLUMN = "mm_per_px"


def voxels_of(case: Case, original: MetaTensor, image: MetaTensor) -> dict[str, torch.Tensor]:
    """The case's landmarks as voxel coordinates (axes,) of `image`.

    A landmark outside the image, or with another number of coordinates than the image has axes, is left out and named.

    Args:
        case: `weak.landmarks` in px of `original`, or in mm of its world.
        original: the image as it was read.
        image: the same image on the network's grid.
    """
    if case.weak is None:
        return {}
    axes, found = image.ndim - 1, {}
    for name, point in case.weak.landmarks.items():
        if len(point) != axes:
            log.warning("landmark %s of %s has %d coordinates, the image %d axes", name, case.id, len(point), axes)
            continue
        place = torch.tensor(point, dtype=torch.float64)
        world = place if case.weak.landmark_unit == "mm" else to_world(place[None], original)[0]
        voxel = to_voxels(world[None], image)[0]
        if bool(((voxel < -0.5) | (voxel > torch.tensor(image.shape[1:]) - 0.5)).any()):
            log.warning("landmark %s of %s lies outside the image and is left out: %s", name, case.id, point)
            continue
        found[name] = voxel.float()
    return found


def world_of(case: Case, original: MetaTensor) -> dict[str, torch.Tensor]:
    """The case's landmarks in world coordinates (mm; pixels of pictures)."""
    if case.weak is None:
        return {}
    points = {name: torch.tensor(point, dtype=torch.float64) for name, point in case.weak.landmarks.items()}
    if case.weak.landmark_unit == "mm":
        return points
    return {name: to_world(point[None], original)[0] for name, point in points.items()}


def to_world(points: torch.Tensor, image: MetaTensor) -> torch.Tensor:
    """(M, axes) voxels to (M, axes) world coordinates."""
    axes = image.ndim - 1
    matrix = image.affine.double()
    return points.double() @ matrix[:axes, :axes].T + matrix[:axes, -1]


def to_voxels(points: torch.Tensor, image: MetaTensor) -> torch.Tensor:
    """Inverse of `to_world`."""
    axes = image.ndim - 1
    matrix = image.affine.double()
    return torch.linalg.solve(matrix[:axes, :axes], (points.double() - matrix[:axes, -1]).T).T


def names_of(cases: Sequence[Case]) -> tuple[str, ...]:
    """Names of all landmarks, in the order in which the cases bring them."""
    return tuple(dict.fromkeys(name for case in cases if case.weak for name in case.weak.landmarks))


def pixel_size(cases: Sequence[Case]) -> float:
    """Size of a picture's pixel in mm: column `mm_per_px` of the tables beside its folder of images; else 1.

    One size per data set: the first readable value counts.
    """
    for folder in dict.fromkeys(case.image.parent.parent for case in cases):
        for table in sorted(Path(folder).glob("*.csv")):
            if (size := _first_size(table)) is not None:
                return size
    return 1.0


def _first_size(table: Path) -> float | None:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            row = next(csv.DictReader(file), {})
        size = float(row.get(SPACING_COLUMN) or "nan")
    except (OSError, ValueError, csv.Error):
        return None
    return size if size > 0 else None
