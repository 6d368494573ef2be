"""Which angles are reported, out of three paths that may differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.methods.seg4reg.geometry import SpineGeometry

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Paths:
    """Angles in degrees, (3,) each, in the challenge's order.

    Attributes:
        image: R(x).
        mask: R(S(x)).
        geometry: of S(x), with its vertebrae.
    """

    image: Array | None = None
    mask: Array | None = None
    geometry: SpineGeometry | None = None

    def answers(self) -> dict[str, Array]:
        """The paths that have an answer to be believed, by name."""
        found = {name: value for name, value in (("image", self.image), ("mask", self.mask)) if value is not None}
        if self.geometry is not None and self.geometry.trusted and self.geometry.cobb is not None:
            found["geometry"] = np.array(self.geometry.cobb.angles)
        return found

    @property
    def disagreement(self) -> float | None:
        """Largest mean difference of two paths in degrees; None with fewer than two answers."""
        values = list(self.answers().values())
        pairs = [float(np.abs(a - b).mean()) for i, a in enumerate(values) for b in values[i + 1 :]]
        return max(pairs) if pairs else None


@dataclass(frozen=True)
class Settled:
    """The reported angles.

    Attributes:
        angles: (3,) degrees; None where no path has an answer.
        source: which paths they come from.
    """

    angles: Array | None
    source: str


def settle(paths: Paths, geometry_share: float, fewest: int) -> Settled:
    """Geometry where its count of vertebrae is believed, drawn towards R(S(x)); else R alone.

    R(S(x)) goes before R(x), whose error on tuning cases is a fifth larger; the mean of both lies between them.

    Args:
        paths: what each says.
        geometry_share: weight of geometry against R, in [0, 1].
        fewest: with fewer vertebrae the picture shows no spine, and R's answer means nothing.
    """
    found = paths.answers()
    learnt = found.get("mask", found.get("image"))
    if "geometry" in found:
        if learnt is None:
            return Settled(found["geometry"], "geometry")
        mixed = geometry_share * found["geometry"] + (1 - geometry_share) * learnt
        return Settled(mixed, "geometry and regression")
    if learnt is None or (paths.geometry is not None and paths.geometry.count < fewest):
        return Settled(None, "none")
    return Settled(learnt, "regression")
