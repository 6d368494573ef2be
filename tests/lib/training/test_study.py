from __future__ import annotations

from pathlib import Path

import pytest

from medseg.training.study import study_key


def test_key_shows_the_name_and_tells_places_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = study_key(str(tmp_path / "a" / "my study")), study_key(str(tmp_path / "b" / "my study"))

    assert one.startswith("my-study-")
    assert one != other
    monkeypatch.chdir(tmp_path)
    assert study_key("a/my study") == study_key("a/my study/") == one


def test_archives_are_named_by_their_url() -> None:
    assert study_key("https://pacs.example/dicom-web/") == study_key("https://pacs.example/dicom-web")
    assert study_key("https://pacs.example/dicom-web").startswith("dicom-web-")
    assert study_key("https://pacs.example/dicom-web") != study_key("http://pacs.example/dicom-web")


def test_strange_names_become_safe_folders() -> None:
    assert "/" not in study_key("/")
    assert len(study_key("/" + "x" * 300)) == 47
