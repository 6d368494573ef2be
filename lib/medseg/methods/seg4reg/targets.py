"""What is known of a case: angles, corners in order, and the mask drawn from them."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass

import cc3d
import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medseg.cases import Case
from medseg.metrics.cobb import cobb_angles
from medseg.metrics.spine_corners import check_spine
from medseg.transforms.grid import spacing_of

logger = logging.getLogger(__name__)

VERTEBRAE = 17
BACKGROUND, VERTEBRA, GAP = 0, 1, 2
NAMES = (("angle_1", "max"), ("angle_2", "second"), ("angle_3", "third"))
"""Names of the three angles in a weak label; the second of each is what results call it."""

ANATOMICAL = ("pt", "mt", "tl")
SAME = 0.5
"""Stored angles that differ by less than this many degrees were computed from the same corners."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """Labels of one case.

    Attributes:
        angles: (3,) degrees in the challenge's order, NaN where unknown: what a prediction is judged by.
        learnt: (3,) the same as training uses it: recomputed where corners were put right, NaN where they are faulty.
        corners: (17, 4, 2) px of the image, in order; None where there are none that can be used.
        remarks: what was repaired or dropped.
    """

    angles: Array
    learnt: Array
    corners: Array | None
    remarks: tuple[str, ...] = ()


def read_truth(case: Case, image: MetaTensor) -> Truth:
    """Angles and corners of a case.

    Args:
        case: its weak labels may hold angles and the 68 landmarks of 17 vertebrae, T1 to L5.
        image: the case's image, for its height, its spacing and its place.
    """
    angles = given_angles(case)
    corners = given_corners(case, image)
    if corners is None:
        return Truth(angles, angles, None)
    spacing = np.array(spacing_of(image))
    square = spacing / spacing[1]
    height = float(image.shape[2])
    as_stored = np.array(cobb_angles(corners * square, height).angles)
    judged = np.where(np.isnan(angles), as_stored, angles)
    found = check_spine(corners)
    if found.corners is None:
        drawn_from_them = bool((np.abs(as_stored - judged) < SAME).all())
        remarks = ("corners dropped: " + "; ".join(found.faults),) + (("angles, too",) if drawn_from_them else ())
        return Truth(judged, np.full(3, np.nan) if drawn_from_them else angles, None, remarks)
    if not found.repaired:
        return Truth(judged, judged, found.corners)
    mended = np.array(cobb_angles(found.corners * square, height).angles)
    learnt = np.where(np.abs(as_stored - judged) < SAME, mended, judged)
    return Truth(judged, learnt, found.corners, tuple(f"repaired: {what}" for what in found.repaired))


def given_angles(case: Case) -> Array:
    """(3,) degrees in the challenge's order, NaN where unknown.

    Anatomical angles (`pt`, `mt`, `tl`) tell the largest one when all three are there; which of them are the
    challenge's second and third they do not tell.
    """
    named = {name.lower(): value for name, value in (case.weak.angles if case.weak else {}).items()}
    angles = np.array([next((named[n] for n in names if n in named), np.nan) for names in NAMES])
    if np.isnan(angles[0]) and all(name in named for name in ANATOMICAL):
        angles[0] = max(named[name] for name in ANATOMICAL)
    return angles


def given_corners(case: Case, image: MetaTensor) -> Array | None:
    """(17, 4, 2) corners in pixel indices of the image; None unless the landmarks "0" to "67" are there."""
    points = case.weak.landmarks if case.weak else {}
    names = [str(k) for k in range(4 * VERTEBRAE)]
    if not all(name in points for name in names):
        return None
    corners = np.array([points[name][:2] for name in names], dtype=np.float64)
    assert case.weak is not None
    if case.weak.landmark_unit == "mm":
        corners = apply_affine(np.linalg.inv(image.affine.double().numpy()), corners)
    return corners.reshape(VERTEBRAE, 4, 2)


def apply_affine(affine: Array, points: Array) -> Array:
    """(N, 2) points through a (3, 3) affine."""
    return points @ affine[:2, :2].T + affine[:2, 2]


def draw_spine(corners: Array, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Classes of every pixel: background, vertebra, gap between two vertebrae.

    Args:
        corners: (N, 4, 2) in pixel indices of the result.
        size: (x, y).

    Neighbours that touch or overlap are kept apart by a line of two pixels, and of a vertebra that is cut by it or
    covered by the next one only the largest piece stays, so that each vertebra is one component.
    """
    canvas = Image.new("I", size)
    pencil = ImageDraw.Draw(canvas)
    for above, below in itertools.pairwise(corners):
        pencil.polygon(_ring(above[2], above[3], below[1], below[0]), fill=-1)
    for number, quad in enumerate(corners, start=1):
        pencil.polygon(_ring(quad[0], quad[1], quad[3], quad[2]), fill=number)
    for above, below in itertools.pairwise(corners):
        left, right = (above[2] + below[0]) / 2, (above[3] + below[1]) / 2
        reach = 0.15 * (right - left)
        pencil.line(_ring(left - reach, right + reach), fill=-1, width=2)
    numbers = _apart(np.asarray(canvas).T)
    classes = np.where(numbers < 0, GAP, np.where(_largest_pieces(numbers), VERTEBRA, BACKGROUND)).astype(np.uint8)
    classes[(numbers > 0) & (classes == BACKGROUND)] = GAP
    return classes


def _apart(numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    """Numbers without the pixels that touch a lower number above 0; they become -1."""
    kept = numbers.copy()
    for axis in (0, 1):
        one, two = np.moveaxis(numbers, axis, 0)[:-1], np.moveaxis(numbers, axis, 0)[1:]
        touching = (one > 0) & (two > 0) & (one != two)
        for own, side in ((one, slice(None, -1)), (two, slice(1, None))):
            view = np.moveaxis(kept, axis, 0)[side]
            view[touching & (own == np.maximum(one, two))] = -1
    return kept


def _largest_pieces(numbers: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Where the largest connected piece of each number above 0 lies."""
    drawn = np.ascontiguousarray(np.maximum(numbers, 0).astype(np.uint32))
    pieces, count = cc3d.connected_components(drawn, connectivity=4, return_N=True)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    owners = np.zeros(count + 1, np.int64)
    owners[pieces.ravel()] = drawn.ravel()
    order = np.lexsort((areas, owners))  # the last piece of each owner is its largest
    largest = order[np.flatnonzero(np.diff(np.append(owners[order], owners.max() + 1)))]
    return np.asarray(np.isin(pieces, largest[owners[largest] > 0]))


def close_gaps(mask: NDArray[np.bool_], quads: Array) -> NDArray[np.uint8]:
    """Classes of every pixel of a mask that somebody drew: its vertebrae, and the gaps between their quadrilaterals."""
    classes = draw_spine(quads, (mask.shape[0], mask.shape[1])) if len(quads) > 1 else np.zeros(mask.shape, np.uint8)
    classes[classes == VERTEBRA] = BACKGROUND
    classes[mask] = VERTEBRA
    return classes


def log_remarks(case: Case, truth: Truth) -> None:
    """Say once per load what was repaired or dropped."""
    if truth.remarks:
        logger.warning("case %s: %s", case.id, "; ".join(truth.remarks))


def to_grid_indices(points: Array, image: MetaTensor, grid: MetaTensor) -> Array:
    """Pixel indices of an image as indices of a resampled copy of it."""
    step = torch.linalg.inv(grid.affine.double()) @ image.affine.double()
    return apply_affine(step.numpy(), points)


def _ring(*points: Array) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]
