"""Organ phantoms: volumes or images with exact truth, as far from a pure threshold as a first test needs.

Shapes live in a frame in mm, so that spacing and tilt change the grid and not the anatomy. Every subject has the same
organs in its own shape and pose: a large chamber with vessels, a second chamber below it, a round vessel beside it.
Small distractors of the chamber's intensity lie around them and belong to the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medseg.errors import MedsegError
from medseg.phantoms.noise import smooth_noise

ORGANS = ("atrium", "ventricle", "aorta")
CENTRES = np.array([[0.03, 0.11, 0.06], [0.06, -0.26, -0.16], [-0.34, 0.06, 0.05]])  # share of the field of view
RADII = np.array([[0.25, 0.21, 0.23], [0.20, 0.14, 0.18], [0.09, 0.09, 0.24]])
INTENSITIES = (170.0, 130.0, 205.0)
TISSUE = 70.0
DISTRACTORS = {2: 6, 3: 20}  # by the number of axes

Array = NDArray[np.float64]


class Organ(NamedTuple):
    """A phantom.

    Attributes:
        image: (*grid) float32 in about 0..255.
        mask: (*grid) uint8, 0 background, 1..labels the organs.
        affine: voxel index to RAS mm, (4, 4); of a picture (3, 3).
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    affine: Array


def organ_labels(labels: int = 1) -> dict[str, int]:
    """Names of the organs of `make_organ`, by index.

    Raises:
        MedsegError: `labels` is not in 1..3.
    """
    if not 1 <= labels <= len(ORGANS):
        raise MedsegError(f"organ phantoms have 1..{len(ORGANS)} labels, got {labels}")
    return {name: index + 1 for index, name in enumerate(ORGANS[:labels])}


def make_organ(
    seed: int, shape: Sequence[int], labels: int = 1, spacing: Sequence[float] | None = None, tilt: float = 0.0
) -> Organ:
    """Draw one subject; equal arguments give an equal phantom.

    Args:
        seed: of everything random: shape, pose, distractors, bias field, noise.
        shape: voxels along each axis, two or three axes.
        labels: number of organs with a label, 1..3; the others are there, too, as background.
        spacing: mm per voxel; ones by default.
        tilt: largest rotation in degrees of the grid about a random axis (oblique affine); in 2D it has no effect.

    Raises:
        MedsegError: `labels` is not in 1..3, or `shape` and `spacing` do not fit.
    """
    organ_labels(labels)
    spacing = tuple(spacing or (1.0,) * len(shape))
    if len(shape) not in (2, 3) or len(spacing) != len(shape) or min(shape) < 8:
        raise MedsegError(f"shape {tuple(shape)} with spacing {spacing}: give two or three axes of at least 8 voxels")
    rng = np.random.default_rng(seed)
    affine = _affine(rng, shape, spacing, tilt)
    frame = _frame(shape, spacing, affine)
    organs = _organs(rng, frame)
    image = np.full(shape, TISSUE)
    image[_distractors(rng, frame, organs > 0)] = INTENSITIES[0]
    for index, intensity in enumerate(INTENSITIES, start=1):
        image[organs == index] = intensity * rng.uniform(0.92, 1.08)
    image = _acquire(rng, image)
    return Organ(image.astype(np.float32), np.where(organs <= labels, organs, 0).astype(np.uint8), affine)


def _affine(rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float], tilt: float) -> Array:
    """Scale, then a rotation of at most `tilt` degrees, then an offset that puts the grid off the origin."""
    if len(shape) == 2:
        return np.diag([*spacing, 1.0])
    affine = np.eye(4)
    scale = np.diag(spacing)
    axis = rng.normal(size=3)
    angle = np.deg2rad(rng.uniform(0.5, 1.0) * tilt)
    affine[:3, :3] = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix() @ scale
    affine[:3, 3] = rng.uniform(-40, 40, size=3)
    return affine


def _frame(shape: Sequence[int], spacing: Sequence[float], affine: Array) -> Array:
    """(axes, *grid): position of each voxel from the centre of the image, in shares of the field of view."""
    axes = len(shape)
    extent = np.array([n * s for n, s in zip(shape, spacing, strict=True)])
    centred = np.indices(shape).reshape(axes, -1) - (np.array(shape)[:, None] - 1) / 2
    world = affine[:axes, :axes] @ centred
    return (world / extent[:, None]).reshape(axes, *shape)


def _smooth_noise(rng: np.random.Generator, shape: Sequence[int], cells: int) -> Array:
    return smooth_noise(rng, shape, (cells,) * len(shape))


def _ellipsoid(frame: Array, centre: Array, radii: Array, turn: float) -> Array:
    """(*grid): 1 on the surface of an ellipsoid that is turned in the plane of the first two axes, less inside."""
    axes = len(frame)
    cosine, sine = np.cos(turn), np.sin(turn)
    moved = frame - centre[:axes].reshape(axes, *[1] * axes)
    turned = moved.copy()
    turned[0], turned[1] = cosine * moved[0] + sine * moved[1], cosine * moved[1] - sine * moved[0]
    return np.sqrt(np.sum((turned / radii[:axes].reshape(axes, *[1] * axes)) ** 2, axis=0))


def _vessels(rng: np.random.Generator, frame: Array, centre: Array) -> NDArray[np.bool_]:
    """Three short tubes that leave the large chamber sideways and upwards."""
    axes = len(frame)
    found = np.zeros(frame.shape[1:], bool)
    for angle in rng.uniform(-0.3, 0.3, size=3) + np.array([0.2, 1.6, 2.9]):
        direction = np.array([np.cos(angle), np.sin(angle), rng.uniform(-0.3, 0.3)])[:axes]
        moved = frame - centre[:axes].reshape(axes, *[1] * axes)
        along = np.tensordot(direction, moved, axes=1)
        across = np.sqrt(np.maximum(np.sum(moved**2, axis=0) - along**2, 0))
        found |= (along > 0) & (along < rng.uniform(0.30, 0.36)) & (across < rng.uniform(0.04, 0.06))
    return found


def _organs(rng: np.random.Generator, frame: Array) -> NDArray[np.int64]:
    """(*grid) 0..3: all organs; where two meet, the one with the smaller number stays."""
    shape = frame.shape[1:]
    pose = rng.uniform(-0.05, 0.05, size=3)
    turn = rng.uniform(-0.4, 0.4)
    organs = np.zeros(shape, np.int64)
    for index in (3, 2, 1):
        centre = CENTRES[index - 1] + pose + rng.uniform(-0.025, 0.025, size=3)
        radii = RADII[index - 1] * rng.uniform(0.82, 1.15, size=3)
        inside = _ellipsoid(frame, centre, radii, turn) + 0.13 * _smooth_noise(rng, shape, 5) < 1
        if index == 1:
            inside |= _vessels(rng, frame, centre)
        organs[inside] = index
    return organs


def _distractors(rng: np.random.Generator, frame: Array, organs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Small balls of the large chamber's intensity, at a distance from all organs."""
    found = np.zeros_like(organs)
    near = gaussian_filter(organs.astype(float), [0.03 * n for n in organs.shape]) > 0.02
    for _ in range(DISTRACTORS[len(frame)]):
        centre = rng.uniform(-0.47, 0.47, size=3)
        found |= _ellipsoid(frame, centre, np.full(3, rng.uniform(0.06, 0.10)), 0.0) < 1
    return found & ~near


def _acquire(rng: np.random.Generator, image: Array) -> Array:
    """Texture, partial volume, bias field and Rician noise of a scanner, with a random gain."""
    image = image + 6 * _smooth_noise(rng, image.shape, 12)
    image = gaussian_filter(image, 0.6) * np.exp(0.12 * _smooth_noise(rng, image.shape, 3))
    noise = rng.normal(scale=9.0, size=(2, *image.shape))
    return np.clip(rng.uniform(0.85, 1.15) * np.hypot(image + noise[0], noise[1]), 0, 255)
