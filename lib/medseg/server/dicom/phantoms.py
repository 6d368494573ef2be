"""Phantoms as DICOM: what `make archive` and the tests put into an archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.phantoms.organs import organ_labels
from medseg.phantoms.study import StudyOptions, make_subjects
from medseg.server.dicom.export import ExportFacts, write_series


@dataclass(frozen=True)
class DicomPhantom:
    """One phantom in the archive.

    Attributes:
        series: Series Instance UID: its id in a study.
        modality: CT or MR.
        mask: (x, y, z) whole numbers, the truth, on `affine`'s grid.
        affine: voxel to RAS mm.
        labels: name -> value.
    """

    series: str
    modality: str
    mask: NDArray[np.integer]
    affine: NDArray[np.float64]
    labels: dict[str, int]


def write_phantoms(folder: Path, count: int = 6, options: StudyOptions | None = None) -> list[DicomPhantom]:
    """Write `count` phantoms below `folder`, CT and MR in turn, each its own patient."""
    options = options or StudyOptions()
    written = []
    for index, (name, organ) in enumerate(make_subjects(count, options=options)):
        modality = ("CT", "MR")[index % 2]
        volume = MetaTensor(
            torch.from_numpy(np.asarray(organ.image, dtype=np.float32))[None],
            affine=torch.from_numpy(np.asarray(organ.affine, dtype=np.float64)),
        )
        facts = ExportFacts(patient=f"PHANTOM-{index:02d}", modality=modality, description=f"phantom {name}")
        series = write_series(volume, folder / name, facts)
        written.append(DicomPhantom(series, modality, organ.mask, organ.affine, organ_labels(options.labels)))
    return written
