"""Tiny studies on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

OBLIQUE = np.array(
    [[0.86, -0.31, 0.08, -12.5], [0.29, 0.94, -0.11, 40.25], [-0.02, 0.17, 2.4, -7.75], [0.0, 0.0, 0.0, 1.0]]
)
"""Affine of a rotated, anisotropic grid."""

WriteNifti = Callable[..., Path]


@pytest.fixture
def oblique() -> np.ndarray:
    return OBLIQUE.copy()


@pytest.fixture
def write_nifti() -> WriteNifti:
    """`write_nifti(path, array, affine=OBLIQUE)` writes a NIfTI file and returns its path."""

    def write(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
        return path

    return write


@pytest.fixture
def study(tmp_path: Path, write_nifti: WriteNifti) -> Path:
    """A flat studies folder, with a space in its name, of three oblique 6 x 7 x 5 images: a, b, c."""
    folder = tmp_path / "my studies"
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        write_nifti(folder / f"{name}.nii.gz", rng.normal(size=(6, 7, 5)).astype(np.float32))
    return folder


@pytest.fixture
def plain_study(tmp_path: Path, write_nifti: WriteNifti) -> Path:
    """`images/` with a, b, c and the user's own `labels/` with a and b."""
    folder = tmp_path / "plain"
    for number, name in enumerate(("a", "b", "c")):
        write_nifti(folder / "images" / f"{name}.nii.gz", np.full((6, 7, 5), number, np.float32))
    for name in ("a", "b"):
        mask = np.zeros((6, 7, 5), np.uint8)
        mask[2:4, 2:4, 2:4] = 1
        write_nifti(folder / "labels" / f"{name}.nii.gz", mask)
    return folder


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files of a test, among them the results that a caller has to remove, lie where pytest removes them."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder
