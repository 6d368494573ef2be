from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import NotFoundError, UnusableInputError
from medseg.weak import WeakLabels
from medseg.weak_import import merged, read_weak_table

IMAGES = {"a": Path("a.nii.gz"), "b": Path("b.nii.gz")}


def table(folder: Path, *lines: str) -> Path:
    file = folder / "extents.csv"
    file.write_text("\n".join(lines))
    return file


def test_percentages_ranges_scores_source_and_author(tmp_path: Path) -> None:
    file = table(
        tmp_path, "image,source,by,patient,extent_left,extent_2,score_right", "a,reader,ann,P1,30,10-25,", "b,,,,,,4"
    )

    rows = read_weak_table(file, IMAGES)

    first, second = rows["a"].weak, rows["b"].weak
    assert first is not None
    assert second is not None
    assert first.extent == {"left": 30.0, "2": (10.0, 25.0)}
    assert (first.source, first.by, rows["a"].patient) == ("reader", "ann", "P1")
    assert second.scores == {"right": 4}
    assert second.source == "table"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("b,101", r"extents.csv line 3, column 'extent_1'.*is 101.0; give a percentage in 0..100"),
        ("b,30-10", r"line 3, column 'extent_1'.*\(30.0, 10.0\); give a percentage"),
        ("b,many", r"line 3, column 'extent_1': 'many' is no number"),
        ("c,5", r"line 3, column 'image': there is no image 'c'"),
        ("a,5", "line 3, column 'image': image 'a' already has a row"),
    ],
)
def test_a_bad_row_names_file_line_column_and_reason(tmp_path: Path, row: str, reason: str) -> None:
    with pytest.raises(UnusableInputError, match=reason):
        read_weak_table(table(tmp_path, "image,extent_1", "a,5", row), IMAGES)


@pytest.mark.parametrize("score", ["6", "2.5", "-1"])
def test_bad_scores(tmp_path: Path, score: str) -> None:
    with pytest.raises(UnusableInputError, match=r"line 2, column 'score_1'.*whole number in 0..5"):
        read_weak_table(table(tmp_path, "image,score_1", f"a,{score}"), IMAGES)


def test_no_file_and_no_row_that_says_anything(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        read_weak_table(tmp_path / "none.csv", IMAGES)
    with pytest.raises(UnusableInputError, match="says nothing of any image"):
        read_weak_table(table(tmp_path, "image,extent_1", "a,"), IMAGES)


def test_a_row_replaces_the_extents_and_leaves_the_rest(tmp_path: Path) -> None:
    before = WeakLabels(extent={"1": 5}, scores={"2": 1}, angles={"max": 3}, source="reader", by="ann")
    row = read_weak_table(table(tmp_path, "image,extent_3", "a,7"), IMAGES)["a"]

    weak = merged(before, row)

    assert weak is not None
    assert weak.extent == {"3": 7.0}
    assert weak.scores == {}
    assert weak.angles == {"max": 3.0}
    assert (weak.source, weak.by) == ("table", None)  # nobody signed the new extents


def test_a_row_without_extents_leaves_their_source_and_author(tmp_path: Path) -> None:
    before = WeakLabels(extent={"1": 5}, source="mask", by="ann")
    rows = read_weak_table(table(tmp_path, "image,by,domain,angle_1", "a,eve,T1,", "b,eve,,12"), IMAGES)

    weak, alone = merged(before, rows["a"]), merged(None, rows["b"])

    assert weak == WeakLabels(extent={"1": 5}, source="mask", by="ann", domain="T1")
    assert alone == WeakLabels(angles={"angle_1": 12}, source="table", by="eve")
