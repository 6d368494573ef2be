"""Phantom data sets on disk: `images/` + `labels/` folders and MONAI Label studies folders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.files import write_atomically, write_json
from medseg.phantoms.organs import Organ, make_organ, organ_labels


@dataclass(frozen=True)
class StudyOptions:
    """What the phantoms of a study look like.

    Attributes:
        shape: voxels along each axis; two axes give PNG files, three NIfTI.
        spacings: mm per voxel; the subjects take them in turn.
        tilt: largest tilt of the grid in degrees.
        labels: number of labels, 1..3.
        prefix: case ids are `<prefix>_000`, `<prefix>_001`, ...
    """

    shape: tuple[int, ...] = (64, 64, 32)
    spacings: tuple[tuple[float, ...], ...] = ((1.0, 1.0, 2.0), (1.1, 1.1, 1.8), (0.9, 0.9, 2.2))
    tilt: float = 12.0
    labels: int = 1
    prefix: str = "organ"


FLAT = StudyOptions(shape=(96, 80), spacings=((1.0, 1.0),), tilt=0.0, prefix="slice")
"""Options of a 2D study."""


def make_subjects(count: int, seed: int = 0, options: StudyOptions = StudyOptions()) -> Iterator[tuple[str, Organ]]:
    """Case ids and phantoms, one at a time; subject `i` is the same whatever `count` is."""
    for index in range(count):
        spacing = options.spacings[index % len(options.spacings)]
        yield (
            f"{options.prefix}_{index:03d}",
            make_organ(1000 * seed + index, options.shape, options.labels, spacing, options.tilt),
        )


def write_dataset(
    folder: Path, count: int, seed: int = 0, labelled: int | None = None, options: StudyOptions = StudyOptions()
) -> Path:
    """Write a plain data set: `images/`, `labels/` of the first `labelled` cases (None: all), `labels.json`."""
    return _write(Path(folder), Path("images"), Path("labels"), make_subjects(count, seed, options), labelled, options)


def write_study(
    folder: Path, count: int = 12, seed: int = 0, labelled: int | None = 4, options: StudyOptions = StudyOptions()
) -> Path:
    """Write a MONAI Label studies folder: images at its top, the first `labelled` masks in `labels/final`.

    `labels.json` lies at the top of the folder; the datastore takes only image files from there.
    """
    return _write(
        Path(folder), Path(), Path("labels") / "final", make_subjects(count, seed, options), labelled, options
    )


def _write(
    folder: Path,
    images: Path,
    labels: Path,
    subjects: Iterator[tuple[str, Organ]],
    labelled: int | None,
    options: StudyOptions,
) -> Path:
    suffix = ".png" if len(options.shape) == 2 else ".nii.gz"
    for index, (identifier, organ) in enumerate(subjects):
        write_grid(folder / images / f"{identifier}{suffix}", organ.image, organ.affine)
        if labelled is None or index < labelled:
            write_grid(folder / labels / f"{identifier}{suffix}", organ.mask, organ.affine)
    write_json(folder / "labels.json", organ_labels(options.labels))
    return folder


def write_grid(path: Path, values: NDArray[np.generic], affine: NDArray[np.float64]) -> Path:
    """Write an array (*grid) as NIfTI (with the affine) or as 8-bit PNG (axes x, y), by the suffix of `path`."""

    def write(temporary: Path) -> None:
        if path.suffix == ".png":
            Image.fromarray(np.ascontiguousarray(np.rint(values).astype(np.uint8).T)).save(temporary)
        else:
            nib.save(nib.Nifti1Image(values, affine), temporary)

    return write_atomically(path, write)
