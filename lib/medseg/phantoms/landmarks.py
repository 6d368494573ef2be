"""Synthetic anatomy with known landmarks: one textured anatomy, deformed and re-lit for every subject."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from medseg.errors import MedsegError
from medseg.files import write_text
from medseg.transforms.io import write_volume

MOST = 12
TURN = 0.15  # radians
STRETCH = 0.08
SHIFT = 0.05  # share of the field of view
BEND = 0.02  # amplitude of the elastic field, share of the field of view

Array = NDArray[np.float64]


class LandmarkPhantom(NamedTuple):
    """A subject.

    Attributes:
        image: (*grid) float32 in 0..255.
        points: (L, axes) voxel coordinates of the landmarks; they may lie outside where the subject is shifted.
        affine: voxel index to RAS mm, (4, 4); of a picture (3, 3).
    """

    image: NDArray[np.float32]
    points: Array
    affine: Array


def make_landmarks(
    seed: int, shape: Sequence[int], count: int = 6, anatomy: int = 0, mirror: bool = False
) -> LandmarkPhantom:
    """Draw one subject; equal arguments give an equal phantom.

    Args:
        seed: of the subject: pose, deformation, contrast, noise.
        shape: voxels along each axis, two or three axes.
        count: number of landmarks, 1..12.
        anatomy: seed of what all subjects share.
        mirror: mirror the subject along the first axis, landmarks too.

    Raises:
        MedsegError: a count outside 1..12, or other than two or three axes of at least 16 voxels.
    """
    if not 1 <= count <= MOST:
        raise MedsegError(f"landmark phantoms have 1..{MOST} landmarks, got {count}")
    if len(shape) not in (2, 3) or min(shape) < 16:
        raise MedsegError(f"shape {tuple(shape)}: give two or three axes of at least 16 voxels")
    rng = np.random.default_rng(seed)
    axes = len(shape)
    body, places = _anatomy(anatomy, shape, count)
    matrix = _pose(rng, axes, mirror)
    shift = rng.uniform(-SHIFT, SHIFT, axes) * shape
    centre = (np.asarray(shape) - 1) / 2
    bend = np.stack([_smooth(rng, shape, 0.2) for _ in range(axes)]) * BEND * min(shape)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij"))
    source = _apply(matrix, grid - (centre + shift).reshape(-1, *(1,) * axes)) + centre.reshape(-1, *(1,) * axes) + bend
    image = map_coordinates(body, source, order=1, mode="nearest")
    points = _invert(places, matrix, centre, shift, bend)
    image = image * rng.uniform(0.7, 1.3) + rng.uniform(-0.3, 0.3) + 0.15 * _smooth(rng, shape, 0.3)
    image = image + 0.05 * rng.standard_normal(shape)
    scaled = 255 * (image - image.min()) / (np.ptp(image) + 1e-9)
    return LandmarkPhantom(scaled.astype(np.float32), points, np.eye(axes + 1))


def write_landmark_study(folder: Path, subjects: int, shape: Sequence[int], count: int = 6) -> Path:
    """Write `images/` and `landmarks.csv` (columns x0, y0[, z0], ...); landmarks outside the image are written, too."""
    names = "xyz"[: len(shape)]
    rows = []
    for subject in range(subjects):
        phantom = make_landmarks(subject, shape, count)
        name = f"subject_{subject:03d}" + (".png" if len(shape) == 2 else ".nii.gz")
        image = torch.from_numpy(phantom.image.round() if len(shape) == 2 else phantom.image)[None]
        write_volume(folder / "images" / name, MetaTensor(image, affine=torch.from_numpy(phantom.affine)))
        rows.append([name, *(f"{value:.2f}" for point in phantom.points for value in point)])
    text = io.StringIO()
    header = ["image", *(f"{axis}{index}" for index in range(count) for axis in names)]
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(folder / "landmarks.csv", text.getvalue())
    return folder


def _anatomy(seed: int, shape: Sequence[int], count: int) -> tuple[Array, Array]:
    """Ellipses over a texture of two grains, and places on the ellipses' poles."""
    rng = np.random.default_rng(1_000_003 + seed)
    axes = len(shape)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    image = 0.3 * _smooth(rng, shape, 0.08) + 0.15 * _smooth(rng, shape, 0.03)
    places = []
    for index in range(MOST):
        centre, radii = rng.uniform(-0.6, 0.6, axes), rng.uniform(0.08, 0.25, axes)
        away = (grid - centre.reshape(-1, *(1,) * axes)) / radii.reshape(-1, *(1,) * axes)
        image = image + rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.0) * (np.square(away).sum(axis=0) < 1)
        pole = centre.copy()
        pole[index % axes] += radii[index % axes]
        places.append((pole + 1) / 2 * (np.asarray(shape) - 1))
    return gaussian_filter(image, 0.7), np.asarray(places[:count])


def _pose(rng: np.random.Generator, axes: int, mirror: bool) -> Array:
    matrix = np.diag(1 + rng.uniform(-STRETCH, STRETCH, axes))
    for first in range(axes):
        for second in range(first + 1, axes):
            angle = rng.uniform(-TURN, TURN)
            turn = np.eye(axes)
            turn[[first, second], [first, second]] = np.cos(angle)
            turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
            matrix = matrix @ turn
    if mirror:
        matrix[:, 0] *= -1
    return matrix


def _apply(matrix: Array, grid: Array) -> Array:
    return np.einsum("ij,j...->i...", matrix, grid)


def _invert(places: Array, matrix: Array, centre: Array, shift: Array, bend: Array) -> Array:
    """Voxels of the subject that show the anatomy's places, by fixed-point iteration."""
    back = np.linalg.inv(matrix)
    found = places.copy()
    for _ in range(30):
        moved = np.stack([map_coordinates(b, found.T, order=1, mode="nearest") for b in bend], axis=1)
        found = (places - centre - moved) @ back.T + centre + shift
    return found


def _smooth(rng: np.random.Generator, shape: Sequence[int], grain: float) -> Array:
    """A smooth random field of unit spread; `grain` is the share of the field of view of one grain."""
    field = gaussian_filter(rng.standard_normal(shape), [grain * n for n in shape], mode="wrap")
    return np.asarray(field / (field.std() + 1e-9))
