"""The hash of the code that made a result."""

from __future__ import annotations

from pathlib import Path

from medseg.sources import LENGTH, code_hash, hash_of


def write(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)
    return folder


def test_hash_follows_names_and_contents_and_not_the_place(tmp_path: Path) -> None:
    first = hash_of(write(tmp_path / "a", one="x = 1", two="y = 2"))

    assert first == hash_of(write(tmp_path / "b", one="x = 1", two="y = 2"))
    assert first != hash_of(write(tmp_path / "c", one="x = 1", two="y = 3"))
    assert first != hash_of(write(tmp_path / "d", one="x = 1", three="y = 2"))
    assert first != hash_of(write(tmp_path / "e", one="x = 1y = 2", two=""))


def test_files_that_are_no_source_do_not_count(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", one="x = 1")
    before = hash_of(folder)
    (folder / "one.pyc").write_bytes(b"1")

    assert hash_of(folder) == before


def test_the_package_itself_is_hashed_once() -> None:
    assert len(code_hash()) == LENGTH
    assert code_hash() is code_hash()
