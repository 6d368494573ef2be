from __future__ import annotations

import gzip
import hashlib
import json
import threading
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monailabel.interfaces.datastore import DefaultLabelTag

from medseg.cases import load_cases
from medseg.errors import ConflictError, MedsegError, NotFoundError, UnusableInputError
from medseg.server.datastore import MedsegDatastore

LABELS = {"liver": 1, "spleen": 2}
SHAPE = (6, 7, 5)
SLICER = {"label_info": [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}], "client_id": "anna"}


def _mask(value: int = 1) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[2:4, 2:4, 2:4] = value
    return array


def _snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "lock"}


def _voxels(path: str | Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def store(study: Path) -> MedsegDatastore:
    return MedsegDatastore(study, LABELS)


@pytest.fixture
def label(tmp_path: Path, write_nifti: Any) -> Path:
    return write_nifti(tmp_path / "upload.nii.gz", _mask(1))


# saving


def test_a_saved_label_is_remapped_by_name_and_remembered(store: MedsegDatastore, study: Path, label: Path) -> None:
    assert store.save_label("a", str(label), DefaultLabelTag.FINAL, dict(SLICER)) == "a"
    path = study / "labels" / "final" / "a.nii.gz"
    assert store.get_label_uri("a", "final") == str(path)
    np.testing.assert_array_equal(_voxels(path), _mask(2))
    info = store.get_label_info("a", "final")
    assert info["author"] == "anna"
    assert info["voxels"] == {"liver": 0, "spleen": 8}
    assert info["label_names"] == LABELS
    assert info["label_info"] == [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]
    assert info["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info["remarks"] == store.saved_remarks("a") == []
    assert store.get_labeled_images() == ["a"]
    assert store.get_unlabeled_images() == ["b", "c"]
    assert store.status()["completed"] == 1
    assert store.datalist() == [{"image": str(study / "a.nii.gz"), "label": str(path)}]
    assert store.datalist(full_path=False) == [{"image": "a.nii.gz", "label": "labels/final/a.nii.gz"}]


def test_saving_the_stored_label_with_its_stored_info_changes_no_voxel(store: MedsegDatastore, label: Path) -> None:
    store.save_label("a", str(label), "final", dict(SLICER))
    again = store.get_label_info("a", "final")
    store.save_label("b", store.get_label_uri("a", "final"), "final", again)
    np.testing.assert_array_equal(_voxels(store.get_label_uri("b", "final")), _mask(2))


def test_a_refused_label_changes_nothing(store: MedsegDatastore, study: Path, label: Path, tmp_path: Path) -> None:
    store.save_label("a", str(label), "final", dict(SLICER))
    before = _snapshot(study)
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "x.py").write_text("")
    (tmp_path / "x.nii.gz").write_bytes(b"nothing")
    refused: list[tuple[str, Path, Any]] = [
        ("a", label, {"label_info": [{"name": "tumour"}]}),
        ("a", label, ["no", "object"]),
        ("a", tmp_path / "x.json", {}),
        ("a", tmp_path / "x.py", {}),
        ("a", tmp_path / "x.nii.gz", {}),
        ("nobody", label, {}),
    ]
    for image, file, info in refused:
        with pytest.raises(MedsegError):
            store.save_label(image, str(file), "final", info)
    assert _snapshot(study) == before


def test_a_label_of_an_image_whose_voxels_cannot_be_read_is_refused(
    store: MedsegDatastore, study: Path, label: Path
) -> None:
    image = study / "a.nii.gz"
    image.write_bytes(gzip.compress(gzip.decompress(image.read_bytes())[:400]))  # the header is whole

    with pytest.raises(UnusableInputError, match=r"^a\.nii\.gz cannot be read, it seems damaged"):
        store.save_label("a", str(label), "final", dict(SLICER))
    assert store.get_labeled_images() == []


def test_complaints_name_the_image_and_not_the_temporary_file(
    store: MedsegDatastore, tmp_path: Path, write_nifti: Any
) -> None:
    half = write_nifti(tmp_path / "tmp0x1y2z.nii.gz", _mask(1) * np.float32(0.5))
    (tmp_path / "tmp3x4y5z.nii.gz").write_bytes(b"nothing")

    with pytest.raises(UnusableInputError, match=r"^label a\.label\.nii\.gz holds fractional values such as 0\.5"):
        store.save_label("a", str(half), "final", {})
    with pytest.raises(UnusableInputError, match=r"^a\.label\.nii\.gz cannot be read[^/]*$"):
        store.save_label("a", str(tmp_path / "tmp3x4y5z.nii.gz"), "final", {})


def test_remarks_reach_the_caller(store: MedsegDatastore, tmp_path: Path, write_nifti: Any) -> None:
    store.save_label("a", str(write_nifti(tmp_path / "e.nii.gz", _mask(0))), "final_ben", {"client_id": "ben"})
    assert "empty" in store.saved_remarks("a")[0]
    assert store.get_labeled_images() == []
    assert store.get_labeled_images("final_ben") == ["a"]
    assert store.saved_remarks("b") == []


def test_the_labels_saved_last_are_listed_with_their_remarks(
    store: MedsegDatastore, tmp_path: Path, write_nifti: Any, label: Path
) -> None:
    assert [entry for entry in store.last_saved(9) if entry["author"]] == []
    store.save_label("b", str(label), "final", {"client_id": "anna"})
    store.save_label("a", str(write_nifti(tmp_path / "e.nii.gz", _mask(0))), "final_ben", {"client_id": "ben"})
    store.save_label("a", str(label), "original", {"client_id": "robot"})

    newest, before = store.last_saved(2)

    assert (newest["image"], newest["tag"], newest["author"]) == ("a", "final_ben", "ben")
    assert "empty" in newest["remarks"][0]
    assert (before["image"], before["author"], before["remarks"]) == ("b", "anna", [])
    assert before["saved"] < newest["saved"]


def test_a_label_that_most_others_have_is_missed(
    store: MedsegDatastore, tmp_path: Path, write_nifti: Any, study: Path
) -> None:
    write_nifti(study / "d.nii.gz", np.zeros(SHAPE, np.float32))
    one = write_nifti(tmp_path / "one.nii.gz", _mask(1))
    for image in "abc":
        store.save_label(image, str(one), "final", {})
        assert store.saved_remarks(image) == []
    store.save_label("d", str(write_nifti(tmp_path / "two.nii.gz", _mask(2))), "final", {})
    assert store.saved_remarks("d") == ["'liver' is missing, which most finished labels have"]


def test_predictions_pass_the_contract_too_but_may_be_json(store: MedsegDatastore, label: Path, tmp_path: Path) -> None:
    result = {"label_names": {"spleen": 1, "liver": 2}, "dice": np.float32(0.5)}
    store.save_label("a", str(label), "original", {"model": "m", "params": result})
    np.testing.assert_array_equal(_voxels(store.get_label_uri("a", "original")), _mask(2))
    assert store.get_label_info("a", "original")["params"]["dice"] == 0.5
    (tmp_path / "markups.json").write_text("{}")
    store.save_label("a", str(tmp_path / "markups.json"), "original", {})
    assert store.get_label_uri("a", "original").endswith("original/a.json")
    assert len(list((Path(store.get_label_uri("a", "original")).parent).iterdir())) == 1


def test_other_tags_keep_files_as_they_are(store: MedsegDatastore, tmp_path: Path) -> None:
    (tmp_path / "weak.json").write_text('{"x": 1}')
    store.save_label("a", str(tmp_path / "weak.json"), "weak", {})
    assert Path(store.get_label_uri("a", "weak")).read_text() == '{"x": 1}'
    assert store.get_labeled_images() == []


def test_names_are_registered_where_the_app_has_no_labels(study: Path, label: Path) -> None:
    store = MedsegDatastore(study)
    store.save_label("a", str(label), "final", {"label_info": [{"name": "aorta"}]})
    store.save_label("b", str(label), "final", {"label_info": [{"name": "vein"}]})
    assert store.labels == MedsegDatastore(study).labels == {"aorta": 1, "vein": 2}
    np.testing.assert_array_equal(_voxels(store.get_label_uri("b", "final")), _mask(2))


# history


def test_previous_versions_are_kept_and_restored(
    store: MedsegDatastore, study: Path, tmp_path: Path, write_nifti: Any
) -> None:
    for value, author in ((1, "anna"), (2, "ben")):
        file = write_nifti(tmp_path / f"{value}.nii.gz", _mask(value))
        store.save_label("a", str(file), "final", {"client_id": author})
    (first,) = store.label_history("a")
    assert (first.number, first.author) == (1, "anna")
    assert first.saved
    np.testing.assert_array_equal(_voxels(first.file), _mask(1))
    store.restore_label("a", "final", 1, author="carl")
    np.testing.assert_array_equal(_voxels(store.get_label_uri("a", "final")), _mask(1))
    assert store.get_label_info("a", "final")["author"] == "carl"
    assert store.get_label_info("a", "final")["restored_from"] == 1
    assert [v.author for v in store.label_history("a")] == ["anna", "ben"]
    with pytest.raises(NotFoundError, match="no version 9"):
        store.restore_label("a", "final", 9)


def test_removed_labels_and_images_keep_their_history(store: MedsegDatastore, study: Path, label: Path) -> None:
    store.save_label("a", str(label), "final", dict(SLICER))
    store.remove_label("a", "final")
    assert store.get_labeled_images() == []
    assert store.get_label_uri("a", "final") == ""
    store.restore_label("a", "final", 1)
    content = (study / "a.nii.gz").read_bytes()
    store.remove_image("a")
    assert store.list_images() == ["b", "c"]
    assert [v.author for v in store.label_history("a")] == ["anna", "anna"]
    (kept,) = (study / ".medseg" / "removed").iterdir()
    assert kept.read_bytes() == content
    assert MedsegDatastore(study).list_images() == ["b", "c"]
    with pytest.raises(NotFoundError):
        store.remove_image("a")
    with pytest.raises(NotFoundError):
        store.remove_label("b", "final")


def test_the_journal_names_author_time_and_hash(store: MedsegDatastore, study: Path, label: Path) -> None:
    store.save_label("a", str(label), "final", dict(SLICER))
    entry = json.loads((study / ".medseg" / "journal.jsonl").read_text().splitlines()[-1])
    assert (entry["change"], entry["image"], entry["tag"], entry["author"]) == ("label_saved", "a", "final", "anna")
    assert entry["sha256"] == store.get_label_info("a", "final")["sha256"]
    assert entry["time"].startswith("20")


# names and paths


@pytest.mark.parametrize("bad", ["../../x", "..", "/etc/passwd", ".medseg", "a/b", "a\\b", "x\x00", ""])
def test_no_name_leaves_the_studies_folder(store: MedsegDatastore, study: Path, label: Path, bad: str) -> None:
    before, around = _snapshot(study), set(study.parent.rglob("*"))
    calls = [
        lambda: store.save_label(bad, str(label), "final", {}),
        lambda: store.save_label("a", str(label), bad, {}),
        lambda: store.get_image_uri(bad),
        lambda: store.get_image_info(bad),
        lambda: store.get_label_uri(bad, "final"),
        lambda: store.get_label_uri("a", bad),
        lambda: store.get_label_info("a", bad),
        lambda: store.update_image_info(bad, {}),
        lambda: store.update_label_info("a", bad, {}),
        lambda: store.remove_image(bad),
        lambda: store.remove_label("a", bad),
        lambda: store.label_history(bad, "final"),
        lambda: store.restore_label("a", bad, 1),
    ]
    if bad:  # an empty id means: take the file's name
        calls.append(lambda: store.add_image(bad, str(label), {}))
    for call in calls:
        with pytest.raises(MedsegError):
            call()
    assert _snapshot(study) == before
    assert set(study.parent.rglob("*")) == around


def test_writing_through_a_link_does_not_touch_its_target(store: MedsegDatastore, study: Path, label: Path) -> None:
    outside = study.parent / "outside.nii.gz"
    outside.write_bytes(b"precious")
    (study / "labels" / "final").mkdir(parents=True)
    (study / "labels" / "final" / "a.nii.gz").symlink_to(outside)
    store.save_label("a", str(label), "final", {})
    assert outside.read_bytes() == b"precious"
    np.testing.assert_array_equal(_voxels(store.get_label_uri("a", "final")), _mask(1))


def test_unknown_images_are_not_found(store: MedsegDatastore) -> None:
    for call in (store.get_image_uri, store.get_image_info, store.remove_image):
        with pytest.raises(NotFoundError, match="'nobody'"):
            call("nobody")


# images


def test_an_added_image_is_copied_and_one_of_the_same_id_is_refused(
    store: MedsegDatastore, study: Path, tmp_path: Path, write_nifti: Any
) -> None:
    new = write_nifti(tmp_path / "new.1.nii.gz", np.ones(SHAPE, np.float32))
    assert store.add_image("", str(new), {"client_id": "anna"}) == "new.1"
    assert (study / "new.1.nii.gz").read_bytes() == new.read_bytes()
    assert store.add_image("new.1", str(new), {"patient": "p1"}) == "new.1"
    info = store.get_image_info("new.1")
    assert (info["client_id"], info["patient"]) == ("anna", "p1")
    other = write_nifti(tmp_path / "other.nii", np.zeros(SHAPE, np.float32))
    with pytest.raises(ConflictError, match=r"'new\.1' is taken by new\.1\.nii\.gz"):
        store.add_image("new.1", str(other), {})
    (tmp_path / "broken.nii.gz").write_bytes(b"broken")
    with pytest.raises(UnusableInputError, match=r"broken\.nii\.gz"):
        store.add_image("broken", str(tmp_path / "broken.nii.gz"), {})
    with pytest.raises(UnusableInputError, match="known suffix"):
        store.add_image("main", __file__, {})
    assert store.list_images() == ["a", "b", "c", "new.1"]


def test_equal_stems_are_told_in_the_status(store: MedsegDatastore, study: Path, write_nifti: Any) -> None:
    write_nifti(study / "a.nii", np.zeros(SHAPE, np.float32))
    (problem,) = store.status()["problems"]
    assert "share the id 'a': a.nii.gz is used, a.nii not" in problem
    assert store.get_image_uri("a").endswith("a.nii.gz")


# info


def test_info_is_plain_json(store: MedsegDatastore, study: Path) -> None:
    store.update_image_info("a", {"score": np.float32(0.25), "n": np.int64(2), "bad": float("nan"), "path": "/etc"})
    info = store.get_image_info("a")
    assert (info["score"], info["n"], info["bad"]) == (0.25, 2, None)
    assert info["path"] == str(study / "a.nii.gz")
    stored = json.loads((study / "datastore_v2.json").read_text())["objects"]["a"]["image"]["info"]
    assert type(stored["score"]) is float
    assert "path" not in stored


def test_weak_labels_are_checked_when_written(store: MedsegDatastore, study: Path) -> None:
    weak = {"extent": {"left": 12.5, "right": [0, 5]}, "domain": "mr"}
    store.update_image_info("a", {"weak": weak})
    assert store.get_image_info("a")["weak"] == weak
    with pytest.raises(UnusableInputError, match=r"image a.*extent.*140"):
        store.update_image_info("a", {"weak": {"extent": {"left": 140}}, "other": 1})
    assert "other" not in store.get_image_info("a")
    with pytest.raises(UnusableInputError, match="send an object"):
        store.update_image_info("a", [1])  # type: ignore[arg-type]
    case = next(case for case in load_cases(study) if case.id == "a")
    assert case.domain == "mr"
    assert case.weak is not None
    assert case.weak.extent["left"] == 12.5


def test_what_is_returned_may_be_changed_by_the_caller(store: MedsegDatastore, label: Path) -> None:
    store.update_image_info("a", {"strategy": {"random": {"ts": 1}}})
    store.get_image_info("a")["strategy"]["random"]["ts"] = 99
    store.save_label("a", str(label), "final", {"x": {"y": 1}})
    store.get_label_info("a", "final")["x"]["y"] = 99
    assert store.get_image_info("a")["strategy"] == {"random": {"ts": 1}}
    assert store.get_label_info("a", "final")["x"] == {"y": 1}


def test_label_info_is_updated(store: MedsegDatastore, label: Path) -> None:
    store.save_label("a", str(label), "final", {"x": 1})
    store.update_label_info("a", "final", {"y": np.float64(2)})
    info = store.get_label_info("a", "final")
    assert (info["x"], info["y"]) == (1, 2.0)
    with pytest.raises(NotFoundError, match="no label 'weak'"):
        store.update_label_info("a", "weak", {})


def test_threads_of_one_server_do_not_lose_writes(store: MedsegDatastore) -> None:
    def work(me: int) -> None:
        for number in range(8):
            store.update_image_info("a", {f"{me}-{number}": number})
            assert store.get_image_info("a")[f"{me}-{number}"] == number

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("-" in key for key in store.get_image_info("a")) == 32


# images/ + labels/


def test_the_users_own_labels_count_and_are_never_touched(plain_study: Path, tmp_path: Path, write_nifti: Any) -> None:
    own = {p: p.read_bytes() for p in plain_study.rglob("*.nii.gz")}
    store = MedsegDatastore(plain_study, LABELS)
    assert store.list_images() == ["a", "b", "c"]
    assert store.get_labeled_images() == ["a", "b"]
    assert store.get_label_uri("a", "final") == str(plain_study / "labels" / "a.nii.gz")
    assert store.get_image_uri("a") == str(plain_study / "images" / "a.nii.gz")
    with pytest.raises(ConflictError, match="your own file"):
        store.remove_label("a", "final")
    store.save_label("a", str(write_nifti(tmp_path / "new.nii.gz", _mask(2))), "final", {"client_id": "anna"})
    assert store.get_label_uri("a", "final") == str(plain_study / "labels" / "final" / "a.nii.gz")
    (first,) = store.label_history("a")
    np.testing.assert_array_equal(_voxels(first.file), _mask(1))
    store.remove_label("a", "final")  # the correction goes, the user's own label counts again
    assert store.get_label_uri("a", "final") == str(plain_study / "labels" / "a.nii.gz")
    assert store.get_labeled_images() == ["a", "b"]
    assert {p: p.read_bytes() for p in own} == own
    store.remove_image("b")
    assert (plain_study / "labels" / "b.nii.gz").exists()
    assert MedsegDatastore(plain_study, LABELS).list_images() == ["a", "c"]


# MONAI Label's own methods on top


def test_inherited_methods_see_the_present_state(store: MedsegDatastore, study: Path, label: Path) -> None:
    other = MedsegDatastore(study, LABELS)
    other.save_label("b", str(label), "final", {})
    other.set_name("hearts")
    other.set_description("left atria")
    assert store.get_labels_by_image_id("b") == {"final": "b"}
    assert store.get_label_by_image_id("b", "final") == "b"
    assert (store.name(), store.description()) == ("hearts", "left atria")
    assert store.get_image("a").read() == (study / "a.nii.gz").read_bytes()
    assert store.get_label("b", "final").read() == (study / "labels/final/b.nii.gz").read_bytes()
    assert store.json()["objects"]["b"]["labels"]["final"]["ext"] == ".nii.gz"
    assert store.status()["label_tags"] == {"final": 1}
    archive = Path(store.get_dataset_archive(None))
    assert sorted(zipfile.ZipFile(archive).namelist()) == ["image/b.nii.gz", "label/b.nii.gz", "metadata.json"]
    archive.unlink()


def test_an_archive_without_labels_says_so(store: MedsegDatastore) -> None:
    with pytest.raises(NotFoundError, match="no finished label"):
        store.get_dataset_archive(None)


def test_extensions_may_be_given_as_monai_label_has_them(study: Path) -> None:
    (study / "p.png").write_bytes(b"x")
    assert MedsegDatastore(study, extensions=("*.nii.gz", "*.svs")).list_images() == ["a", "b", "c"]
    with pytest.raises(MedsegError, match=r"\*\.svs"):
        MedsegDatastore(study, extensions=("*.svs",))
