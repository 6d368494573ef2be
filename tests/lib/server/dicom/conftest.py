"""Phantom series and an Orthanc archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.phantoms.study import StudyOptions
from medseg.server.dicom import orthanc
from medseg.server.dicom.export import ExportFacts, write_series
from medseg.server.dicom.phantoms import DicomPhantom, write_phantoms

MakeSeries = Callable[..., tuple[Path, str]]
PHANTOMS = StudyOptions(shape=(24, 20, 12), labels=2)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[orthanc.Orthanc]:
    """An empty Orthanc; skips where it is not installed, fails instead under MEDSEG_REQUIRE_VIEWERS=1."""
    if missing := orthanc.missing_parts():
        if os.environ.get("MEDSEG_REQUIRE_VIEWERS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with orthanc.running(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="session")
def phantom_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DicomPhantom]]:
    """Four small phantoms, CT and MR in turn, and the folder of their DICOM files."""
    folder = tmp_path_factory.mktemp("phantoms")
    return folder, write_phantoms(folder, 4, PHANTOMS)


@pytest.fixture
def phantoms(archive: orthanc.Orthanc, phantom_files: tuple[Path, list[DicomPhantom]]) -> list[DicomPhantom]:
    """The phantoms, as the only series of the archive."""
    archive.clear()
    archive.upload(phantom_files[0])
    return phantom_files[1]


@pytest.fixture
def make_series(tmp_path: Path) -> MakeSeries:
    """`make_series(array, affine, **facts)` writes a DICOM series; its folder and UID."""

    def make(array: np.ndarray, affine: np.ndarray, **facts: str) -> tuple[Path, str]:
        folder = tmp_path / f"series-{len(list(tmp_path.iterdir()))}"
        volume = MetaTensor(torch.from_numpy(array.astype(np.float32))[None], affine=torch.from_numpy(affine))
        return folder, write_series(volume, folder, ExportFacts(**facts))

    return make
