from __future__ import annotations

import os
from pathlib import Path

import pytest

from medseg.errors import MedsegError
from medseg.server.folders import StudyFolders


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_flat_layout_sees_images_and_tagged_labels_only(tmp_path: Path) -> None:
    _touch(tmp_path, "a.nii.gz", "b.png", "._a.nii.gz", ".tmp-1.nii.gz", "notes.txt", "sub/c.nii.gz", ".medseg/d.nii")
    _touch(tmp_path, "labels/final/a.nii.gz", "labels/final/._a.nii.gz", "labels/final/nobody.nii.gz")
    _touch(tmp_path, "labels/weak/b.json", "labels/.hidden/a.nii.gz", "labels/bad name/a.nii.gz")
    scan = StudyFolders(tmp_path).scan({})
    assert list(scan.images) == ["a", "b"]
    assert {tag: list(files) for tag, files in scan.labels.items()} == {"final": ["a"], "weak": ["b"]}
    assert scan.problems == []


def test_plain_layout_takes_the_users_labels_where_they_lie(tmp_path: Path) -> None:
    _touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz", "labels/b.nrrd", "regions/a.nii.gz")
    _touch(tmp_path, "labels/final/a.nii.gz")
    folders = StudyFolders(tmp_path)
    scan = folders.scan({})
    final = scan.labels["final"]
    assert final == {"a": tmp_path / "labels/final/a.nii.gz", "b": tmp_path / "labels/b.nrrd"}
    assert scan.labels["regions"] == {"a": tmp_path / "regions/a.nii.gz"}
    assert [folders.is_users_own(final[name]) for name in "ab"] == [False, True]


def test_layout_follows_where_the_images_are(tmp_path: Path) -> None:
    _touch(tmp_path, "a.nii.gz")
    (tmp_path / "images").mkdir()
    assert not StudyFolders(tmp_path).plain
    _touch(tmp_path, "images/b.nii.gz")
    assert StudyFolders(tmp_path).plain


def test_equal_ids_are_told_and_the_known_file_is_kept(tmp_path: Path) -> None:
    _touch(tmp_path, "a.nii.gz", "a.nrrd", "b.nii", "labels/x.nii.gz", "bad name.nii")
    folders = StudyFolders(tmp_path)
    scan = folders.scan({})
    assert scan.images["a"].name == "a.nii.gz"
    known = {"a": {"image": {"ext": ".nrrd"}, "labels": {}}}
    assert folders.scan(known).images["a"].name == "a.nrrd"
    text = " | ".join(scan.problems)
    assert "2 files share the id 'a': a.nii.gz is used, a.nrrd not" in text
    assert "bad name.nii is not used: rename it" in text
    assert "labels are not used; move them to labels/final" in text


def test_the_stamp_changes_with_the_files_even_within_one_tick_of_the_clock(tmp_path: Path) -> None:
    _touch(tmp_path, "a.nii.gz", "labels/final/a.nii.gz")
    folders, final = StudyFolders(tmp_path), tmp_path / "labels" / "final"
    before, times = folders.stamp(), final.stat()
    assert folders.stamp() == before
    _touch(final, "b.nii.gz")
    os.utime(final, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert folders.stamp() != before


def test_the_stamp_of_folders_at_rest_follows_their_time(tmp_path: Path) -> None:
    _touch(tmp_path, "a.nii.gz", "labels/final/a.nii.gz")
    folders = StudyFolders(tmp_path)
    for folder in (tmp_path, tmp_path / "labels", tmp_path / "labels/final"):
        os.utime(folder, (1e9, 1e9))
    before = folders.stamp()
    os.utime(tmp_path / "labels/final", (1e9, 1e9 + 1))
    assert folders.stamp() != before


def test_links_keep_their_own_name_and_dead_ones_are_ignored(tmp_path: Path) -> None:
    _touch(tmp_path, "raw/IMG 0001.nii.gz")
    root = tmp_path / "study"
    root.mkdir()
    (root / "a.nii.gz").symlink_to(tmp_path / "raw" / "IMG 0001.nii.gz")
    (root / "dead.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    assert StudyFolders(root).scan({}).images == {"a": root / "a.nii.gz"}


def test_a_file_is_no_studies_folder(tmp_path: Path) -> None:
    _touch(tmp_path, "file")
    with pytest.raises(MedsegError, match="cannot be used"):
        StudyFolders(tmp_path / "file")
