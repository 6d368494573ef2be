"""The parameter-free path: a mask, its vertebrae, their angles, or the reason why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.metrics.cobb import CobbAngles, cobb_angles
from medseg.metrics.curves import SpineCurves, spine_curves
from medseg.metrics.quads import Quads, quads_of_mask

NAMES = tuple(f"T{k}" for k in range(1, 13)) + tuple(f"L{k}" for k in range(1, 6))
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """Which vertebra counts are believed.

    Attributes:
        lowest: fewest vertebrae of a whole spine.
        highest: most vertebrae.
        fewest: below, there is no spine in the picture.
    """

    lowest: int = 16
    highest: int = 18
    fewest: int = 6


@dataclass(frozen=True)
class SpineGeometry:
    """What a mask says.

    Attributes:
        corners: (N, 4, 2) in pixels of the mask.
        cobb: angles in the challenge's order; None where there are fewer than two vertebrae.
        curves: proximal thoracic, main thoracic and thoracolumbar curves; None with `cobb`.
        refused: why the angles are not to be believed; empty where they are.
        dropped: specks that were left out.
    """

    corners: Array
    cobb: CobbAngles | None
    curves: SpineCurves | None
    refused: str = ""
    dropped: int = 0

    @property
    def count(self) -> int:
        """Number of vertebrae."""
        return len(self.corners)

    @property
    def trusted(self) -> bool:
        """Whether the angles are to be believed."""
        return self.cobb is not None and not self.refused

    def name(self, index: int) -> str:
        """Name of a vertebra; with other than 17 vertebrae nobody knows which is T1, and its number is the name."""
        return NAMES[index] if self.count == len(NAMES) else f"vertebra {index + 1} of {self.count}"


def measure_mask(
    mask: NDArray[Any], spacing: tuple[float, float], limits: Limits = Limits(), refine: bool = False
) -> SpineGeometry:
    """Angles of a mask of vertebrae.

    Args:
        mask: (x, y), y downwards; one value, or a number for each vertebra.
        spacing: size of a pixel along both axes; only their ratio matters.
        limits: believed counts.
        refine: see `quads_of_mask`.
    """
    quads = quads_of_mask(mask, refine)
    return measure_quads(quads, spacing, mask.shape[1], limits)


def measure_quads(quads: Quads, spacing: tuple[float, float], height: float, limits: Limits) -> SpineGeometry:
    """Angles of vertebrae given in pixels of an image of `height` rows; the rest as of `measure_mask`."""
    square = np.array(spacing) / spacing[1]
    refused = why_refused(len(quads), limits)
    if len(quads) < 2:
        return SpineGeometry(quads.corners, None, None, refused, quads.dropped)
    corners = quads.corners * square
    return SpineGeometry(quads.corners, cobb_angles(corners, height), spine_curves(corners), refused, quads.dropped)


def why_refused(count: int, limits: Limits) -> str:
    """Why a number of vertebrae is not believed; empty where it is."""
    if limits.lowest <= count <= limits.highest:
        return ""
    if count < limits.fewest:
        return f"found {count} vertebrae, too few for a spine: check that this is a frontal radiograph of the spine"
    return (
        f"found {count} vertebrae where a whole spine has 17 (believed: {limits.lowest} to {limits.highest}): "
        "correct the mask, or check that T1 to L5 are in the picture"
    )
