"""Cobb angles of a spine from the corners of its vertebrae: the AASCE 2019 rule, and anatomical curves beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONVENTION = "AASCE 2019: angle 1 is the largest; angles 2 and 3 follow its end vertebrae"
"""How the three angles are ordered; no clinical names, because angle 1 may lie in any region."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CobbAngles:
    """Three angles in the challenge's order.

    Attributes:
        angles: degrees; the first is the largest.
        pairs: upper and lower end vertebra of each angle, counted from 0 at the top.
        branch: "c" (one curve), "s_above_below" or "s_above_above": where angles 2 and 3 were looked for.
    """

    angles: tuple[float, float, float]
    pairs: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    branch: str


def cobb_angles(corners: ArrayLike, height: float) -> CobbAngles:
    """Angles by the challenge's rule.

    Args:
        corners: (N, 4, 2) in pixels with square pixels and y downwards, vertebrae from top to bottom, corners top-left,
            top-right, bottom-left, bottom-right. The challenge has N = 17; the rule works from 2 on.
        height: of the image in pixels. It decides where an S-shaped spine is looked at for angles 2 and 3.

    Raises:
        ValueError: another shape, or numbers that are not finite.

    Source: released code of the challenge, in the words of the Seg4Reg card sec. 4. It reproduces the challenge's own
    labels within 0.08 degrees.
    Deviation: a spine whose first and last mid-points have one x (or y) counts as S-shaped without a division by 0.
    """
    points = check_corners(corners)
    table = pairwise_angles(mid_lines(points))
    last = len(points) - 1
    upper = np.where(np.triu(np.ones_like(table, dtype=bool), k=1), table, -1.0)
    p, q = (int(i) for i in np.unravel_index(int(np.argmax(upper)), upper.shape))
    ends = end_plate_centres(points)
    if not is_s_shaped(ends):
        second, third, branch = (0, p), (q, last), "c"
    elif ends[2 * p + 1, 1] + ends[2 * q + 1, 1] < height:
        second = (int(np.argmax(table[p, : p + 1])), p)
        third, branch = (q, q + int(np.argmax(table[q, q:]))), "s_above_below"
    else:
        k = int(np.argmax(table[p, : p + 1]))
        second, third, branch = (k, p), (int(np.argmax(table[k, : k + 1])), k), "s_above_above"
    pairs = ((p, q), second, third)
    a, b, c = (float(table[i, j]) for i, j in pairs)
    return CobbAngles((a, b, c), pairs, branch)


def check_corners(corners: ArrayLike) -> Array:
    """Corners as (N, 4, 2) float64.

    Raises:
        ValueError: another shape, or numbers that are not finite.
    """
    points = np.asarray(corners, dtype=np.float64)
    if points.ndim != 3 or points.shape[1:] != (4, 2) or len(points) < 2:
        raise ValueError(f"corners have shape {points.shape}; give (N, 4, 2) with N at least 2")
    if not np.isfinite(points).all():
        raise ValueError("corners hold numbers that are not finite")
    return points


def mid_lines(corners: Array) -> Array:
    """(N, 2) vectors from the middle of a vertebra's left side to the middle of its right side."""
    return (corners[:, 1] + corners[:, 3] - corners[:, 0] - corners[:, 2]) / 2


def tilts(corners: Array) -> Array:
    """(N,) angle of each mid-line to the image's x axis in degrees, positive where the right side is lower."""
    v = mid_lines(corners)
    return np.degrees(np.arctan2(v[:, 1], v[:, 0]))


def pairwise_angles(vectors: Array) -> Array:
    """(N, N) angles between vectors in degrees, in [0, 180]; the cosine is rounded to 8 decimals as in the original."""
    length = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
    cosine = np.round(vectors @ vectors.T / np.outer(length, length), 8)
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def end_plate_centres(corners: Array) -> Array:
    """(2 N, 2) middles of upper and lower end plates, vertebra by vertebra."""
    return np.stack([corners[:, :2].mean(axis=1), corners[:, 2:].mean(axis=1)], axis=1).reshape(-1, 2)


def is_s_shaped(centres: Array) -> bool:
    """Whether end-plate centres lie on both sides of the line from the first to the last."""
    (x0, y0), (xn, yn) = centres[0], centres[-1]
    if x0 == xn or y0 == yn:
        return True
    inner = centres[1:-2]  # the original leaves out the last vertebra's upper end plate, too
    side = (inner[:, 1] - yn) / (y0 - yn) - (inner[:, 0] - xn) / (x0 - xn)
    return bool((side > 0).any() and (side < 0).any())
