"""From a mask of vertebrae to their corners: one quadrilateral per connected component."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import ConvexHull, QhullError

Array = NDArray[np.float64]

SMALLEST = 0.25
"""Components below this share of the median area are specks, not vertebrae."""

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


def quads_of_mask(mask: NDArray[np.bool_], refine: bool = False) -> Quads:
    """Corners of every component of a mask.

    Args:
        mask: (x, y) with square pixels and y downwards; vertebrae do not touch.
        refine: fit a line to each side and intersect them, instead of taking the extreme pixels.

    Returns:
        Quadrilaterals ordered by the y of their middle. An empty mask gives none.

    Source: Seg4Reg card sec. 5: convex hull, smallest rectangle, its flatter axis u and the perpendicular w, corners =
    extreme pixels along -u-w, u-w, -u+w, u+w.
    Deviation: `refine`, because an extreme pixel carries the noise of one pixel and a line that of a whole side; small
    components are left out.
    """
    labels, count = cc3d.connected_components(np.ascontiguousarray(mask, dtype=np.uint8), connectivity=4, return_N=True)
    if count == 0:
        return Quads(np.zeros((0, 4, 2)), np.zeros(0))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:].astype(np.float64)
    large = areas >= max(SMALLEST * float(np.median(_upper_half(areas))), 9.0)
    found: list[tuple[float, Array, float]] = []
    for index, box in enumerate(find_objects(labels)):
        if box is None or not large[index]:
            continue
        part = np.pad(labels[box] == index + 1, 1)
        offset = np.array([box[0].start - 1, box[1].start - 1], dtype=np.float64)
        corners = quad_of_component(part, refine)
        if corners is not None:
            found.append((float(corners[:, 1].mean() + offset[1]), corners + offset, areas[index]))
    found.sort(key=lambda item: item[0])
    stack = np.array([corners for _, corners, _ in found]).reshape(-1, 4, 2)
    return Quads(stack, np.array([area for _, _, area in found]), count - len(found))


def quad_of_component(part: NDArray[np.bool_], refine: bool = False) -> Array | None:
    """(4, 2) corners of one component in its own indices; None where it is a line or a point."""
    rim = np.argwhere(part & ~binary_erosion(part)).astype(np.float64)
    try:
        hull = rim[ConvexHull(rim).vertices]
    except (QhullError, ValueError):
        return None
    u = flatter_axis(hull)
    w = np.array([-u[1], u[0]])
    corners = np.stack([hull[np.argmax(hull @ d)] for d in (-u - w, u - w, -u + w, u + w)])
    if refine:
        for _ in range(2):
            corners = _fit_sides(rim, corners)
    return corners


def flatter_axis(hull: Array) -> Array:
    """Unit vector (x to the right) along that side of the smallest rectangle around a hull that is nearer horizontal.

    Args:
        hull: (N, 2) corners of a convex polygon.
    """
    edges = np.diff(np.vstack([hull, hull[:1]]), axis=0)
    u = edges / np.linalg.norm(edges, axis=1, keepdims=True)
    along, across = hull @ u.T, hull @ np.stack([-u[:, 1], u[:, 0]])
    area = np.ptp(along, axis=0) * np.ptp(across, axis=0)
    best = u[int(np.argmin(area))]
    if abs(best[1]) > abs(best[0]):
        best = np.array([-best[1], best[0]])
    return best if best[0] > 0 else -best


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
