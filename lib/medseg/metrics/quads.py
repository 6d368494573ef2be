"""From a mask of vertebrae to their corners: one quadrilateral per connected component."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import ConvexHull, QhullError

from medseg.metrics.spine_corners import directions

Array = NDArray[np.float64]

SMALLEST = 0.25
"""Components below this share of the median area of their neighbours (`REACH` above and below) are specks; ours."""

FLOOR = 0.08
"""So are those below this share of the median vertebra. T1 has a tenth to a third of it in the challenge's labels."""

REACH = 2
"""Vertebrae above and below that tell the direction of the spine; two, because a mask may lack one or break it."""

SIDE_MIDDLE = (0.12, 0.88)
"""Part of a side on which its line is fitted; masks of networks are round at the corners."""


@dataclass(frozen=True)
class Quads:
    """Vertebrae of a mask, from top to bottom.

    Attributes:
        corners: (N, 4, 2) x, y in pixel indices: top-left, top-right, bottom-left, bottom-right.
        areas: (N,) pixels of each component.
        dropped: number of components that were specks.
    """

    corners: Array
    areas: Array
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.areas)


def quads_of_mask(mask: NDArray[Any], refine: bool = False) -> Quads:
    """Corners of every component of a mask.

    Args:
        mask: (x, y) with square pixels and y downwards; vertebrae do not touch, or have numbers of their own.
        refine: fit a line to each side and intersect them, instead of taking the extreme pixels.

    Returns:
        Quadrilaterals ordered by the y of their middle. An empty mask gives none.

    Source: Seg4Reg card sec. 5: convex hull, smallest rectangle, its axis u and the perpendicular w, corners = extreme
    pixels along -u-w, u-w, -u+w, u+w.
    Deviation: u is the axis across the spine, not the flatter one, which from 45 degrees on is the vertebra's height;
    `refine`, because an extreme pixel carries the noise of one pixel and a line that of a whole side; small components
    are left out.
    """
    labels, areas, large = vertebrae_of_mask(mask)
    found: list[tuple[Array, Array, float]] = []
    boxes = find_objects(labels)
    for number in large:
        box = boxes[number - 1]
        rim, hull = _outline(np.pad(labels[box] == number, 1))
        if hull is not None:
            offset = np.array([box[0].start - 1, box[1].start - 1], dtype=np.float64)
            found.append((rim + offset, hull + offset, areas[number - 1]))
    found.sort(key=lambda item: float(_middle(item[1])[1]))
    downs = directions(np.array([_middle(hull) for _, hull, _ in found]).reshape(-1, 2), REACH)
    corners = [quad_of_outline(rim, hull, down, refine) for (rim, hull, _), down in zip(found, downs, strict=True)]
    stack = np.array(corners).reshape(-1, 4, 2)
    return Quads(stack, np.array([area for _, _, area in found]), len(areas) - len(found))


def vertebrae_of_mask(mask: NDArray[Any]) -> tuple[NDArray[Any], Array, list[int]]:
    """Components of a mask, in which each value above 0 has its own.

    Returns:
        Number of every pixel's component (0: none), area of each component, and numbers of those that are no specks.
    """
    drawn = np.ascontiguousarray(mask, dtype=np.uint16)
    labels, count = cc3d.connected_components(drawn, connectivity=4, return_N=True)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:].astype(np.float64)
    if count == 0:
        return labels, areas, []
    large = np.flatnonzero(areas >= max(FLOOR * float(np.median(_upper_half(areas))), 9.0))
    order = large[np.argsort(cc3d.statistics(labels)["centroids"][1:][large, 1], kind="stable")]
    return labels, areas, [int(order[i]) + 1 for i in range(len(order)) if _is_vertebra(areas[order], i)]


def _is_vertebra(areas: Array, index: int) -> bool:
    """Whether a component is not much smaller than those around it in (N,) areas from top to bottom."""
    near = areas[max(index - REACH, 0) : index + REACH + 1]
    return bool(areas[index] >= SMALLEST * np.median(near))


def quad_of_outline(rim: Array, hull: Array, down: Array, refine: bool = False) -> Array:
    """(4, 2) corners of one component.

    Args:
        rim: (N, 2) pixels at its border.
        hull: (M, 2) those of them that are corners of its convex hull.
        down: (2,) direction of the spine.
        refine: see `quads_of_mask`.
    """
    u = cross_axis(hull, down)
    w = np.array([-u[1], u[0]])
    corners = np.stack([hull[np.argmax(hull @ d)] for d in (-u - w, u - w, -u + w, u + w)])
    if refine:
        for _ in range(2):
            corners = _fit_sides(rim, corners)
    return corners


def cross_axis(hull: Array, down: Array) -> Array:
    """Unit vector along that side of the smallest rectangle around a hull that runs across the spine, to the right.

    Args:
        hull: (N, 2) corners of a convex polygon.
        down: (2,) direction of the spine, which lies on the vector's right; zeros: straight down.
    """
    edges = np.diff(np.vstack([hull, hull[:1]]), axis=0)
    u = edges / np.linalg.norm(edges, axis=1, keepdims=True)
    along, across = hull @ u.T, hull @ np.stack([-u[:, 1], u[:, 0]])
    area = np.ptp(along, axis=0) * np.ptp(across, axis=0)
    x, y = u[int(np.argmin(area))]
    turns = np.array([[x, y], [-y, x], [-x, -y], [y, -x]])
    right = np.array([down[1], -down[0]]) if np.any(down) else np.array([1.0, 0.0])
    return np.asarray(turns[int(np.argmax(turns @ right))])


def _outline(part: NDArray[np.bool_]) -> tuple[Array, Array | None]:
    """Pixels at the border of one component, and the corners of its convex hull; None where it is a line or a point."""
    rim = np.argwhere(part & ~binary_erosion(part)).astype(np.float64)
    try:
        return rim, rim[ConvexHull(rim).vertices]
    except (QhullError, ValueError):
        return rim, None


def _middle(hull: Array) -> Array:
    """Middle of the box around a hull: its corners are not evenly spread."""
    return (hull.min(axis=0) + hull.max(axis=0)) / 2


def _upper_half(areas: Array) -> Array:
    """The larger half of the components, so that many specks do not pull the median down."""
    return np.sort(areas)[len(areas) // 2 :]


def _fit_sides(rim: Array, corners: Array) -> Array:
    """Corners where lines fitted to the four sides meet; a side with too few points keeps its corners."""
    tl, tr, bl, br = corners
    sides = np.array([[tl, tr], [tr, br], [br, bl], [bl, tl]])
    start, step = sides[:, 0], sides[:, 1] - sides[:, 0]
    length = np.maximum(np.linalg.norm(step, axis=1), 1e-9)
    u = step / length[:, None]
    relative = rim[:, None] - start[None]
    along = (relative * u).sum(axis=2) / length
    away = np.abs(relative[..., 0] * u[:, 1] - relative[..., 1] * u[:, 0])
    side = np.argmin(away + 1e3 * np.maximum(np.abs(along - 0.5) - 0.5, 0), axis=1)
    lines = []
    for index in range(4):
        inside = (along[:, index] > SIDE_MIDDLE[0]) & (along[:, index] < SIDE_MIDDLE[1])
        points = rim[(side == index) & inside]
        if len(points) < 4:
            return corners
        centre = points.mean(axis=0)
        direction = np.linalg.svd(points - centre, full_matrices=False)[2][0]
        lines.append((centre, direction))
    top, right, bottom, left = lines
    fitted = [_meet(top, left), _meet(top, right), _meet(bottom, left), _meet(bottom, right)]
    reach = 0.35 * float(length.max())
    if any(p is None or np.linalg.norm(p - c) > reach for p, c in zip(fitted, corners, strict=True)):
        return corners
    return np.array(fitted)


def _meet(one: tuple[Array, Array], two: tuple[Array, Array]) -> Array | None:
    """Where two lines (point, direction) meet; None where they are nearly parallel."""
    matrix = np.stack([one[1], -two[1]], axis=1)
    if abs(np.linalg.det(matrix)) < 0.2:
        return None
    return one[0] + one[1] * np.linalg.solve(matrix, two[0] - one[0])[0]
