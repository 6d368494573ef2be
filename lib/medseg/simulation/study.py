"""The studies folder of one simulated run, and the true masks the annotator answers with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from monai.data import MetaTensor

from medseg.cases import Case, image_suffix
from medseg.errors import MedsegError
from medseg.files import write_json
from medseg.transforms.io import read_mask, write_volume
from medseg.transforms.labels import renumber

FINAL = Path("labels") / "final"


def write_truth(folder: Path, cases: Sequence[Case], labels: Mapping[str, int] | None = None) -> dict[str, Path]:
    """Write the masks as annotators save them: label values 1..N, 8 bits, NIfTI for volumes and PNG for pictures.

    Args:
        folder: where the masks go.
        cases: with masks.
        labels: label name -> number, in which the masks are written; None: in their own.

    Returns:
        Case id -> mask file. Files that are there already are kept.
    """
    files = {}
    for case in cases:
        assert case.label is not None
        known = [folder / f"{case.id}{suffix}" for suffix in (".png", ".nii.gz")]
        path = next((path for path in known if path.exists()), None)
        if path is None:
            mask = read_mask(case.label) if labels is None else renumber(read_mask(case.label), case, labels)
            if int(mask.max()) > 255:
                raise MedsegError(f"mask of case {case.id} holds label {int(mask.max())}; at most 255 can be simulated")
            path = folder / f"{case.id}{'.png' if mask.ndim == 3 else '.nii.gz'}"
            write_volume(path, MetaTensor(mask.as_tensor().to(torch.uint8), affine=mask.affine))
        files[case.id] = path
    return files


def build_study(
    folder: Path, cases: Sequence[Case], labelled: Sequence[str], truth: Mapping[str, Path], labels: Mapping[str, int]
) -> Path:
    """Make a MONAI Label studies folder.

    Args:
        folder: the studies folder.
        cases: its images; hard links where the file system allows, as images are never written to.
        labelled: ids whose mask is there from the beginning.
        truth: case id -> mask file.
        labels: label name -> index, written to `labels.json`.
    """
    (folder / FINAL).mkdir(parents=True, exist_ok=True)
    for case in cases:
        _link(case.image, folder / f"{case.id}{image_suffix(case.image)}")
    for identifier in labelled:  # a copy: the server may write to it
        source = truth[identifier]
        shutil.copyfile(source, folder / FINAL / source.name)
    write_json(folder / "labels.json", dict(labels))
    return folder


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
