"""Corners of vertebrae as people mark them: what is wrong with them, and what can be put right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.metrics.cobb import check_corners, tilts

Array = NDArray[np.float64]

STEEPEST = 75.0
"""A vertebra whose mid-line is steeper than this many degrees is a mistake, not a curve."""

SMALLEST_SIDE = 2.0
"""Sides of a vertebra that are shorter, in pixels, are no sides."""

HIGHEST_OVERLAP = 0.5
"""Share of a vertebra's height by which it may reach into the next one."""


@dataclass(frozen=True)
class CheckedCorners:
    """Corners after the check.

    Attributes:
        corners: (N, 4, 2) in order; None where they could not be put right.
        repaired: what was put right, one phrase per kind.
        faults: what could not be put right.
    """

    corners: Array | None
    repaired: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def check_spine(corners: ArrayLike) -> CheckedCorners:
    """Put swapped corners and disordered vertebrae in order, or say why they cannot be used.

    Args:
        corners: (N, 4, 2) in pixels, y downwards; top-left, top-right, bottom-left, bottom-right of each vertebra.

    Returns:
        Vertebrae in the order along the spine, with each one's corners where their names say.

    Source: Seg4Reg card sec. 7.2: about 27 images of the challenge have such corners.
    """
    points = check_corners(corners)
    repaired: list[str] = []
    order = np.argsort(points.mean(axis=1)[:, 1], kind="stable")
    if not np.array_equal(order, np.arange(len(points))):
        repaired.append(f"{int((order != np.arange(len(points))).sum())} vertebrae out of order")
        points = points[order]
    along = directions(points.mean(axis=1))
    named = np.stack([name_corners(quad, down) for quad, down in zip(points, along, strict=True)])
    swapped = int((named != points).any(axis=(1, 2)).sum())
    if swapped:
        repaired.append(f"swapped corners in {swapped} vertebrae")
    faults = find_faults(named)
    return CheckedCorners(None if faults else named, tuple(repaired), tuple(faults))


def name_corners(quad: Array, down: Array) -> Array:
    """The four points of one vertebra as top-left, top-right, bottom-left, bottom-right.

    Args:
        quad: (4, 2) in any order.
        down: direction of the spine at this vertebra. Of the four ways to go around the points, the one whose way from
            the upper to the lower middle follows it best is taken.
    """
    centre = quad.mean(axis=0)
    around = quad[np.argsort(np.arctan2(*(quad - centre).T[::-1]))]  # clockwise on the screen
    turns = [np.roll(around, -k, axis=0) for k in range(4)]  # candidates TL, TR, BR, BL
    best = max(turns, key=lambda t: _alignment(t[2] + t[3] - t[0] - t[1], down))
    return best[[0, 1, 3, 2]]


def directions(centres: Array, reach: int = 1) -> Array:
    """(N, 2) way along the spine at each of (N, 2) centres in order: from `reach` vertebrae above to as many below.

    At the ends there are fewer; a single vertebra has no direction and gets zeros.
    """
    index, last = np.arange(len(centres)), len(centres) - 1
    return np.asarray(centres[np.minimum(index + reach, last)] - centres[np.maximum(index - reach, 0)])


def skews(corners: Array) -> Array:
    """(N,) degrees between each vertebra's way from upper to lower end plate and the spine's way over two neighbours.

    Of 456 spines of the challenge all but one stay below 27 degrees.
    """
    own = corners[:, 2:].sum(axis=1) - corners[:, :2].sum(axis=1)
    way = directions(corners.mean(axis=1), 2)
    return np.degrees(np.arccos(np.clip([_alignment(a, b) for a, b in zip(own, way, strict=True)], -1, 1)))


def find_faults(corners: Array) -> list[str]:
    """Reasons why named and ordered corners are no spine; empty where there are none."""
    faults = []
    top, bottom = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 2]
    sides = np.concatenate([top, bottom, corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]])
    if (np.linalg.norm(sides, axis=1) < SMALLEST_SIDE).any():
        faults.append("a vertebra has a side of no length")
    if (np.abs(tilts(corners)) > STEEPEST).any():
        faults.append(f"a vertebra is tilted by more than {STEEPEST:g} degrees")
    if not all(_is_convex(quad) for quad in corners):
        faults.append("the corners of a vertebra do not form a convex quadrilateral")
    centres, heights = corners.mean(axis=1), _heights(corners)
    step = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    reach = (heights[1:] + heights[:-1]) / 2
    if (step < (1 - HIGHEST_OVERLAP) * reach).any():
        faults.append("two vertebrae lie on each other")
    return faults


def _heights(corners: Array) -> Array:
    """(N,) distance between the middles of upper and lower end plate."""
    middle = corners[:, 2:].mean(axis=1) - corners[:, :2].mean(axis=1)
    return np.asarray(np.linalg.norm(middle, axis=1))


def _is_convex(quad: Array) -> bool:
    ring = quad[[0, 1, 3, 2]]
    edges = np.diff(np.vstack([ring, ring[:1]]), axis=0)
    following = np.roll(edges, -1, axis=0)
    cross = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
    return bool((cross > 0).all() or (cross < 0).all())


def _alignment(vector: Array, direction: Array) -> float:
    """Cosine between two vectors; 0 where one has no length."""
    return float(vector @ direction) / max(float(np.linalg.norm(vector) * np.linalg.norm(direction)), 1e-12)
