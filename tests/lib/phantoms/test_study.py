"""Phantom studies on disk: what `load_cases` reads back is what was drawn."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medseg.cases import load_cases
from medseg.files import read_json
from medseg.phantoms.study import FLAT, StudyOptions, make_subjects, write_dataset, write_study

SMALL = StudyOptions(shape=(20, 16, 12), spacings=((1.0, 1.0, 2.0), (0.7, 0.9, 3.0)), tilt=15.0, labels=2)


def test_dataset_is_read_back_with_exact_masks_and_affines(tmp_path):
    write_dataset(tmp_path, 3, seed=1, labelled=2, options=SMALL)

    cases = load_cases(tmp_path)
    drawn = dict(make_subjects(3, seed=1, options=SMALL))

    assert [(case.id, case.label is not None) for case in cases] == [
        ("organ_000", True),
        ("organ_001", True),
        ("organ_002", False),
    ]
    stored = nib.load(cases[1].label)
    assert np.array_equal(np.asarray(stored.dataobj), drawn["organ_001"].mask)
    assert stored.affine == pytest.approx(drawn["organ_001"].affine, abs=1e-5)
    assert nib.load(cases[1].image).affine == pytest.approx(drawn["organ_001"].affine, abs=1e-5)
    assert read_json(tmp_path / "labels.json") == {"atrium": 1, "ventricle": 2}


def test_study_has_images_on_top_and_some_final_labels(tmp_path):
    write_study(tmp_path, 3, labelled=1, options=SMALL)

    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())

    assert names == [
        "labels.json",
        "labels/final/organ_000.nii.gz",
        "organ_000.nii.gz",
        "organ_001.nii.gz",
        "organ_002.nii.gz",
    ]
    assert [case.label is not None for case in load_cases(tmp_path)] == [True, False, False]


def test_picture_has_axes_x_y(tmp_path):
    write_dataset(tmp_path, 1, options=FLAT)

    organ = dict(make_subjects(1, options=FLAT))["slice_000"]
    with Image.open(tmp_path / "labels" / "slice_000.png") as mask:
        assert mask.size == (96, 80)
        assert np.array_equal(np.asarray(mask).T, organ.mask)


def test_subjects_do_not_depend_on_how_many_are_drawn():
    few, many = dict(make_subjects(1, options=SMALL)), dict(make_subjects(2, options=SMALL))

    assert np.array_equal(few["organ_000"].image, many["organ_000"].image)
