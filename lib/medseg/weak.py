"""Weak labels: what a reader can say of an image without drawing a mask.

They live in the image info of the datastore under one object, `weak`, and in a `Case`.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medseg.errors import UnusableInputError

ANGLES = ("angle_1", "angle_2", "angle_3", "max", "second", "third", "pt", "mt", "tl")
"""Known names of angles: Cobb angles in the challenge's order, in two spellings, and anatomical ones."""

SAME_ANGLE = (("angle_1", "max"), ("angle_2", "second"), ("angle_3", "third"))
ROUNDED = 0.5
"""Degrees by which the first angle, the largest one, may be smaller than another; ours: readers round."""

Extent = float | tuple[float, float]


class WeakLabels(BaseModel):
    """The schema of the `weak` object.

    Attributes:
        extent: share of a region that is lesion, by region id or name: a percentage in [0, 100] or [low, high].
        scores: ordinal score 0..5 of a region, by region id or name; the method's table makes intervals of them.
        angles: angles in degrees by name, one of `ANGLES`; `angle_max`, `cobb_max` and `MAX` are read as `max`.
        landmarks: named points, in voxel or pixel indices of the image (x, y[, z]) or mm, see `landmark_unit`.
        domain: name of the imaging domain (scanner, joint, sequence).
        source: where the labels come from, for example `reader`, `table`, `mask`.
        by: who made them.
    """

    model_config = ConfigDict(extra="forbid")

    extent: dict[str, Extent] = Field(default_factory=dict)
    scores: dict[str, int] = Field(default_factory=dict)
    angles: dict[str, float] = Field(default_factory=dict)
    landmarks: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    landmark_unit: str = "px"
    domain: str | None = None
    source: str | None = None
    by: str | None = None

    @field_validator("extent")
    @classmethod
    def _check_extent(cls, extent: dict[str, Extent]) -> dict[str, Extent]:
        for region, value in extent.items():
            low, high = value if isinstance(value, tuple) else (value, value)
            if not 0 <= low <= high <= 100:
                raise ValueError(f"extent of region {region} is {value}; give a percentage in 0..100 or [low, high]")
        return extent

    @field_validator("scores")
    @classmethod
    def _check_scores(cls, scores: dict[str, int]) -> dict[str, int]:
        for region, value in scores.items():
            if not 0 <= value <= 5:
                raise ValueError(f"score of region {region} is {value}; give a whole number in 0..5")
        return scores

    @field_validator("angles")
    @classmethod
    def _check_angles(cls, angles: dict[str, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, value in angles.items():
            if not 0 <= value <= 180:
                raise ValueError(f"angle {name} is {value}; give degrees in 0..180")
            known = _angle_name(name)
            if known in found:
                raise ValueError(f"angle {known} is told twice; keep one of them")
            found[known] = value
        told = [next((found[name] for name in names if name in found), None) for names in SAME_ANGLE]
        if any(names[0] in found and names[1] in found for names in SAME_ANGLE):
            raise ValueError("one angle is told in two spellings, as angle_1 and as max; keep one of them")
        largest = max((value for value in told[1:] if value is not None), default=0)
        if told[0] is not None and told[0] + ROUNDED < largest:
            raise ValueError(f"the first angle is {told[0]:g}, but another {largest:g}; the first is the largest one")
        return found

    @field_validator("landmarks")
    @classmethod
    def _check_landmarks(cls, landmarks: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, point in landmarks.items():
            if len(point) not in (2, 3):
                raise ValueError(f"landmark {name} has {len(point)} coordinates; give x, y or x, y, z")
            if not all(math.isfinite(coordinate) for coordinate in point):
                raise ValueError(f"landmark {name} is {point}; coordinates must be finite numbers")
        return landmarks

    @field_validator("landmark_unit")
    @classmethod
    def _check_unit(cls, unit: str) -> str:
        if unit not in ("px", "mm"):
            raise ValueError(f"landmark_unit is {unit!r}; give 'px' or 'mm'")
        return unit


def _angle_name(name: str) -> str:
    """The known name that is meant."""
    lower = name.lower()
    for known in (lower, lower.removeprefix("angle_"), lower.removeprefix("cobb_")):
        if known in ANGLES:
            return known
    raise ValueError(f"there is no angle {name!r}; known angles: {', '.join(ANGLES)}")


def parse_weak(value: Any, where: str) -> WeakLabels:
    """Validate a `weak` object.

    Args:
        value: the decoded JSON object.
        where: what the object belongs to, named in the error ("image la_003", "extents.csv line 4").

    Raises:
        UnusableInputError: names the place, the field and the reason.
    """
    try:
        return WeakLabels.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "weak"
        raise UnusableInputError(
            f"{where}: weak label field {field!r}: {first['msg'].removeprefix('Value error, ')}"
        ) from error
