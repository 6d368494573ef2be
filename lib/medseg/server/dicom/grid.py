"""Where the slices of a DICOM series lie: the bridge between a volume's voxels and the frames of DICOM objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
EVEN = 0.01  # ours: mm; positions in DICOM headers are rounded to 3..6 digits
DEFAULT_ORIENTATION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Slice:
    """One plane of a series.

    Attributes:
        instance: SOP Instance UID.
        sop_class: SOP Class UID.
        frame: number of the frame, from 1; None for single-frame objects.
        position: centre of the first pixel, LPS, mm.
    """

    instance: str
    sop_class: str
    frame: int | None
    position: tuple[float, float, float]


@dataclass(frozen=True)
class SeriesGrid:
    """The planes of a series in the order of the volume's third axis.

    Attributes:
        columns: pixels along the volume's first axis.
        rows: pixels along its second axis.
        orientation: direction of growing column and of growing row, LPS.
        spacing: mm between columns (first axis) and between rows (second axis).
        thickness: mm a plane is thick.
        slices: planes, ascending along the normal.
        placed: False for pictures that tell no place (radiographs).
    """

    columns: int
    rows: int
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    thickness: float
    slices: tuple[Slice, ...]
    placed: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """(columns, rows, slices)."""
        return self.columns, self.rows, len(self.slices)

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the planes, LPS."""
        return normal_of(self.orientation)

    @property
    def offsets(self) -> np.ndarray:
        """Place of each plane along the normal, mm."""
        return np.array([np.dot(s.position, self.normal) for s in self.slices])

    @property
    def gap(self) -> float:
        """Mean distance of neighbouring planes, mm; the thickness where there is one plane."""
        offsets = self.offsets
        return float(offsets[-1] - offsets[0]) / (len(offsets) - 1) if len(offsets) > 1 else self.thickness

    def affine(self) -> np.ndarray:
        """4x4, voxel to RAS mm; planes are taken as evenly spaced and at right angles to the normal."""
        matrix = np.eye(4)
        matrix[:3, 0] = np.array(self.orientation[:3]) * self.spacing[0]
        matrix[:3, 1] = np.array(self.orientation[3:]) * self.spacing[1]
        matrix[:3, 2] = self.normal * self.gap
        matrix[:3, 3] = self.slices[0].position
        return LPS_TO_RAS @ matrix

    def remarks(self) -> tuple[str, ...]:
        """Sentences on what an affine cannot tell."""
        if len(self.slices) < 3:
            return ()
        gaps = np.diff(self.offsets)
        found = []
        if float(np.ptp(gaps)) > max(EVEN, 0.01 * self.gap):
            found.append(
                f"slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart; the volume shows them {self.gap:.2f} mm "
                "apart, labels go back to the very slices"
            )
        drift = np.subtract(self.slices[-1].position, self.slices[0].position)
        if float(np.linalg.norm(drift - self.normal * np.dot(drift, self.normal))) > max(EVEN, 0.01 * self.gap):
            found.append("the gantry was tilted; the volume shows the slices straight above each other")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> SeriesGrid:
        """Inverse of `to_dict`."""
        slices = tuple(Slice(**{**s, "position": tuple(s["position"])}) for s in value["slices"])
        fields = {"orientation": tuple(value["orientation"]), "spacing": tuple(value["spacing"]), "slices": slices}
        return cls(**{**value, **fields})


def normal_of(orientation: Sequence[float]) -> np.ndarray:
    """Unit normal of a plane with these directions of columns and rows."""
    normal = np.cross(orientation[:3], orientation[3:])
    return np.asarray(normal / np.linalg.norm(normal))
