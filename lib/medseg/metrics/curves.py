"""Anatomical curves of a spine: proximal thoracic, main thoracic, thoracolumbar or lumbar."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.metrics.cobb import check_corners, tilts

CONVENTION = "curves between turning points of the tilt; region by the apex: PT T1-T5, MT T6-T11, TL/L T12-L5"
REGIONS = {"pt": (0.0, 4.5), "mt": (4.5, 10.5), "tl": (10.5, 16.0)}
"""Apex position of each region, 0 = T1 and 16 = L5, as in Lenke's classes with discs given to the vertebra below."""

SMALLEST_TURN = 3.0
"""Degrees by which the tilt must swing back before a curve ends; less is the noise of marking."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A curve from one end vertebra to another, counted from 0 at the top.

    Attributes:
        angle: degrees, positive.
        upper: upper end vertebra.
        lower: lower end vertebra.
        apex: vertebra farthest from the line through the middles of the end vertebrae.
    """

    angle: float
    upper: int
    lower: int
    apex: int


@dataclass(frozen=True)
class SpineCurves:
    """The largest curve of each region; None where a region has none."""

    pt: Curve | None
    mt: Curve | None
    tl: Curve | None


def spine_curves(corners: ArrayLike) -> SpineCurves:
    """Curves of (N, 4, 2) corners as `cobb_angles` takes them.

    Ours: between neighbouring turning points of the tilt profile lies one curve; its Cobb angle is the difference of
    the tilts there. With other than 17 vertebrae the position of an apex is scaled to 17.
    """
    points = check_corners(corners)
    profile, centres = tilts(points), points.mean(axis=1)
    turns = turning_points(profile, SMALLEST_TURN)
    found: dict[str, Curve] = {}
    for upper, lower in itertools.pairwise(turns):
        if lower - upper < 2:
            continue  # one badly marked vertebra, not a curve
        apex = _apex(centres, upper, lower)
        place = apex * 16 / max(len(points) - 1, 1)
        region = next(name for name, (low, high) in REGIONS.items() if low <= place <= high)
        curve = Curve(abs(float(profile[lower] - profile[upper])), upper, lower, apex)
        if region not in found or curve.angle > found[region].angle:
            found[region] = curve
    return SpineCurves(found.get("pt"), found.get("mt"), found.get("tl"))


def turning_points(profile: Array, least: float) -> list[int]:
    """Indices of the extremes of a profile that differ from their neighbours by at least `least`, in order.

    The extremes near both ends belong to it; a profile that is flatter than `least` has none.
    """
    low = high = 0
    turns: list[int] = []
    rising: bool | None = None
    for index, value in enumerate(profile):
        low = index if value < profile[low] else low
        high = index if value > profile[high] else high
        if rising is not False and value <= profile[high] - least:
            turns.append(high)
            rising, low, high = False, index, index
        elif rising is not True and value >= profile[low] + least:
            turns.append(low)
            rising, low, high = True, index, index
    if not turns:
        return []
    return [*turns, high if rising else low]


def _apex(centres: Array, upper: int, lower: int) -> int:
    chord = centres[lower] - centres[upper]
    away = centres[upper : lower + 1] - centres[upper]
    return upper + int(np.argmax(np.abs(away[:, 0] * chord[1] - away[:, 1] * chord[0])))
