from __future__ import annotations

from enum import Enum

import pytest

from medseg.errors import MedsegError, UnusableInputError
from medseg.server.ids import MASK_SUFFIXES, check_image_id, check_image_suffix, check_label_suffix, check_tag, is_name

BAD = [
    "",
    ".",
    "..",
    "../x",
    "a/../b",
    "/etc/passwd",
    "a/b",
    "a\\b",
    ".hidden",
    "a..b",
    "a b",
    "a\n",
    "a\x00",
    "%2e%2e",
    "é",
    "x" * 201,
]


@pytest.mark.parametrize("value", BAD)
def test_names_that_could_leave_the_folder_are_refused(value: str) -> None:
    assert not is_name(value)
    with pytest.raises(MedsegError, match="image id"):
        check_image_id(value)
    with pytest.raises(MedsegError, match="label tag"):
        check_tag(value)


@pytest.mark.parametrize("value", ["la_003", "1.2.840.10008.5", "x-1", "final_anna", "x" * 200])
def test_plain_names_pass_unchanged(value: str) -> None:
    assert check_image_id(value) == value
    assert check_tag(value) == value


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_values_that_are_no_text_are_refused(value: object) -> None:
    with pytest.raises(MedsegError):
        check_image_id(value)


def test_a_tag_may_be_a_member_of_a_string_enumeration() -> None:
    class Tag(str, Enum):  # noqa: UP042 - MONAI Label defines its tags so
        FINAL = "final"

    assert check_tag(Tag.FINAL) == "final"
    assert type(check_tag(Tag.FINAL)) is str


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.b.NII.GZ", ".nii.gz"), ("x.seg.nrrd", ".seg.nrrd"), ("x.nrrd", ".nrrd"), ("w.json", ".json")],
)
def test_label_suffix_is_the_longest_known_one(name: str, suffix: str) -> None:
    assert check_label_suffix(name) == suffix


@pytest.mark.parametrize("name", ["main.py", "x", "x.nii.gz.sh", "x.pt", "x.jpg"])
def test_label_files_of_other_kinds_are_refused(name: str) -> None:
    with pytest.raises(UnusableInputError, match="no known suffix"):
        check_label_suffix(name)


def test_json_is_no_mask() -> None:
    with pytest.raises(UnusableInputError):
        check_label_suffix("weak.json", MASK_SUFFIXES)


def test_image_suffixes_come_from_the_list_of_what_can_be_read() -> None:
    assert check_image_suffix("x.MHA") == ".mha"
    with pytest.raises(UnusableInputError, match=r"'x\.py'"):
        check_image_suffix("x.py")
