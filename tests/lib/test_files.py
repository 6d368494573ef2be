from __future__ import annotations

import os
from pathlib import Path

import pytest

from medseg.files import read_json, write_atomically, write_json, write_text


def test_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)

    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_temporary_name_keeps_the_suffixes_and_is_hidden(tmp_path: Path) -> None:
    names = []

    def write(temporary: Path) -> None:
        names.append(temporary.name)
        temporary.write_text("x")

    write_atomically(tmp_path / "deep" / "1.2.nii.gz", write)

    assert names[0].endswith(".nii.gz")
    assert names[0].startswith(".")
    assert (tmp_path / "deep" / "1.2.nii.gz").stat().st_mode & 0o777 == 0o644


def test_json_round_trip_default_and_refused_nan(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"é": [1, 2.5, None]})

    assert read_json(path) == {"é": [1, 2.5, None]}
    assert read_json(tmp_path / "none.json", default=7) == 7
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"x": float("nan")})
    assert read_json(path) == {"é": [1, 2.5, None]}
