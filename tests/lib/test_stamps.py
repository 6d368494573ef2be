"""What counts as a change of a file or of a case."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from medseg.cases import Case
from medseg.stamps import case_stamp, case_stamps, changed_cases, file_stamp
from medseg.weak import WeakLabels


@pytest.fixture
def case(tmp_path: Path) -> Case:
    for name in ("image", "label", "regions"):
        (tmp_path / f"{name}.nii").write_bytes(b"1")
    weak = WeakLabels(extent={"1": 20.0})
    return Case("a", tmp_path / "image.nii", tmp_path / "label.nii", tmp_path / "regions.nii", weak)


def test_file_stamp_changes_with_size_and_time(tmp_path: Path) -> None:
    image = tmp_path / "a.nii"
    assert file_stamp(image) == file_stamp(None) == ""
    image.write_bytes(b"1")
    before = file_stamp(image)
    os.utime(image, ns=(1, 2))
    touched = file_stamp(image)
    image.write_bytes(b"22")

    assert len({before, touched, file_stamp(image)}) == 3


@pytest.mark.parametrize("part", ["image", "label", "regions"])
def test_case_stamp_sees_every_file(case: Case, part: str) -> None:
    before = case_stamp(case)
    getattr(case, part).write_bytes(b"22")

    assert case_stamp(case) != before


@pytest.mark.parametrize(
    "change",
    [
        {"weak": WeakLabels(extent={"1": 30.0})},
        {"weak": None},
        {"regions": None},
        {"domain": "knee"},
        {"names": {1: "atrium"}},
    ],
    ids=str,
)
def test_case_stamp_sees_what_is_said_of_the_image(case: Case, change: dict[str, object]) -> None:
    assert case_stamp(replace(case, **change)) != case_stamp(case)


def test_case_stamp_does_not_depend_on_what_a_case_is_called(case: Case) -> None:
    assert case_stamp(replace(case, id="b", patient="p", dataset="d")) == case_stamp(case)


def test_changed_cases_are_named_and_new_ones_are_not(case: Case) -> None:
    before = case_stamps([case, replace(case, id="b", label=None)])
    case.label.write_bytes(b"corrected")

    assert changed_cases(before, case_stamps([case, replace(case, id="b", label=None)])) == ["a"]
    assert changed_cases({}, before) == []
