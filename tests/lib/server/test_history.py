from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from medseg.errors import NotFoundError
from medseg.server.history import LabelHistory


def _keep(history: LabelHistory, path: Path, content: bytes, author: str) -> None:
    path.write_bytes(content)
    history.keep("final", "a", path, {"author": author, "saved": "2024-01-01T00:00:00+00:00", "x": 1})


def test_versions_keep_content_author_and_time(tmp_path: Path) -> None:
    history = LabelHistory(tmp_path / "h")
    _keep(history, tmp_path / "a.nii.gz", b"one", "anna")
    _keep(history, tmp_path / "a.nii.gz", b"two", "ben")
    versions = history.versions("final", "a")
    assert [(v.number, v.author, v.file.read_bytes()) for v in versions] == [(1, "anna", b"one"), (2, "ben", b"two")]
    assert versions[0].saved == "2024-01-01T00:00:00+00:00"
    assert versions[0].sha256 == hashlib.sha256(b"one").hexdigest()
    assert versions[0].file.name.endswith(".nii.gz")
    assert versions[1].info["x"] == 1


def test_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    history = LabelHistory(tmp_path / "h")
    for number in range(12):
        _keep(history, tmp_path / "a.json", str(number).encode(), "anna")
    assert [v.number for v in history.versions("final", "a")] == list(range(1, 13))


def test_a_version_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    history = LabelHistory(tmp_path / "h")
    _keep(history, tmp_path / "a.png", b"one", "anna")
    (tmp_path / "h" / "final" / "a" / "0002.label.png").write_bytes(b"half")
    assert [v.number for v in history.versions("final", "a")] == [1]


def test_asking_for_an_unknown_version_names_those_there_are(tmp_path: Path) -> None:
    history = LabelHistory(tmp_path / "h")
    _keep(history, tmp_path / "a.png", b"one", "anna")
    with pytest.raises(NotFoundError, match="no version 7; versions: 1"):
        history.version("final", "a", 7)
    assert history.versions("final", "nobody") == []
