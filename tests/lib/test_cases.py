from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.cases import Case, case_id, image_suffix, load_cases, patient_of, save_cases
from medseg.errors import MedsegError, NotFoundError, UnusableInputError
from medseg.weak import WeakLabels


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_plain_folder_pairs_masks_and_regions_by_name(tmp_path: Path) -> None:
    data = tmp_path / "set"
    touch(data / "images" / "b.nii.gz", data / "images" / "a.nii.gz", data / "images" / "c.nrrd")
    touch(data / "labels" / "a.nrrd", data / "regions" / "b.nii.gz")

    cases = load_cases(data)

    assert [case.id for case in cases] == ["a", "b", "c"]
    assert [case.label for case in cases] == [data / "labels" / "a.nrrd", None, None]
    assert [case.regions for case in cases] == [None, data / "regions" / "b.nii.gz", None]
    assert {case.dataset for case in cases} == {"set"}
    assert [case.patient for case in cases] == ["a", "b", "c"]


def test_studies_folder_reads_weak_labels_and_patients_from_the_index(tmp_path: Path) -> None:
    touch(tmp_path / "x.nii.gz", tmp_path / "y.nii.gz", tmp_path / "labels" / "final" / "y.nii.gz")
    touch(tmp_path / "labels" / "regions" / "x.nii.gz", tmp_path / ".medseg" / "z.nii.gz", tmp_path / "labels.json")
    info = {"weak": {"extent": {"1": [10, 20]}, "domain": "T1"}, "patient": "p7"}
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": {"x": {"image": {"info": info}}}}))

    x, y = load_cases(tmp_path)

    assert (x.id, x.patient, x.domain, x.label) == ("x", "p7", "T1", None)
    assert x.weak is not None
    assert x.weak.extent == {"1": (10.0, 20.0)}
    assert x.regions == tmp_path / "labels" / "regions" / "x.nii.gz"
    assert (y.id, y.patient, y.weak) == ("y", "y", None)
    assert y.label == tmp_path / "labels" / "final" / "y.nii.gz"


def test_wrong_weak_label_names_the_image(tmp_path: Path) -> None:
    touch(tmp_path / "x.nii.gz")
    objects = {"objects": {"x": {"image": {"info": {"weak": {"extent": {"1": 120}}}}}}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps(objects))

    with pytest.raises(UnusableInputError, match=r"image x: .*'extent'.*is 120.*0\.\.100"):
        load_cases(tmp_path)


def test_damaged_index_is_one_sentence(tmp_path: Path) -> None:
    touch(tmp_path / "x.nii.gz")
    (tmp_path / "datastore_v2.json").write_text('{"objects": {"x"')

    with pytest.raises(UnusableInputError, match=r"datastore_v2\.json is damaged"):
        load_cases(tmp_path)


def test_saved_list_comes_back_equal(tmp_path: Path) -> None:
    cases = [
        Case("a", Path("a.nii"), label=Path("m.nii"), weak=WeakLabels(angles={"main": 12.5}), domain="d", patient="p"),
        Case("b", Path("b.nii"), regions=Path("r.nii"), dataset="set"),
    ]

    assert load_cases(save_cases(tmp_path / "cases.json", cases)) == cases


@pytest.mark.parametrize("text", ["[{", '{"a": 1}', '[{"image": "x"}]', '["x"]'])
def test_broken_list_of_cases_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "cases.json").write_text(text)

    with pytest.raises(UnusableInputError, match=r"cases\.json is no list of cases"):
        load_cases(tmp_path / "cases.json")


def test_union_prefixes_equal_ids_and_keeps_patients(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "images" / "p1_a.png", tmp_path / "one" / "images" / "p1_b.png")
    touch(tmp_path / "two" / "images" / "p1_a.png", tmp_path / "two" / "images" / "p2_a.png")

    cases = load_cases([tmp_path / "one", tmp_path / "two"], r"^(p\d)_")

    assert [case.id for case in cases] == ["one_p1_a", "p1_b", "two_p1_a", "p2_a"]
    assert [case.patient for case in cases] == ["p1", "p1", "p1", "p2"]  # a patient is never on both sides of a split


def test_same_folder_given_twice_counts_once(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "images" / "a.png", tmp_path / "one" / "labels" / "a.png")

    assert [case.id for case in load_cases([tmp_path / "one", tmp_path / "one" / "labels" / ".."])] == ["a"]


def test_folders_of_one_name_with_equal_ids_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "set" / "images" / "a.png", tmp_path / "y" / "set" / "images" / "a.png")

    with pytest.raises(MedsegError, match="two images are called 'set_a'"):
        load_cases([tmp_path / "x" / "set", tmp_path / "y" / "set"])


def test_stray_and_hidden_files_are_no_images(tmp_path: Path) -> None:
    images = tmp_path / "images"
    touch(images / "a.nii.gz", images / "._a.nii.gz", images / ".hidden" / "b.nii.gz", images / "notes.txt")
    touch(images / ".nii.gz", tmp_path / "labels" / "._a.nii.gz")

    (case,) = load_cases(tmp_path)

    assert (case.id, case.label) == ("a", None)


def test_missing_and_empty_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        load_cases(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(NotFoundError, match=r"images holds no image.*\.nii\.gz"):
        load_cases(tmp_path)


@pytest.mark.parametrize(
    ("name", "identifier"),
    [("a.nii.gz", "a"), ("1.2.840.NII.GZ", "1.2.840"), ("a.nii.nrrd", "a.nii"), ("x y.JPeG", "x y")],
)
def test_case_id_drops_one_image_suffix(name: str, identifier: str) -> None:
    assert case_id(Path("folder") / name) == identifier


def test_case_id_refuses_other_files() -> None:
    with pytest.raises(MedsegError, match=r"notes\.txt is not an image file"):
        case_id(Path("notes.txt"))
    assert image_suffix(Path("._a.nii")) is None


@pytest.mark.parametrize(
    ("pattern", "patient"),
    [(None, "p12_ED"), (r"^(p\d+)_", "p12"), (r"p\d+", "p12"), (r"^(q)", "p12_ED")],
)
def test_patient_pattern(pattern: str | None, patient: str) -> None:
    assert patient_of("p12_ED", pattern) == patient


def test_broken_patient_pattern_is_one_sentence() -> None:
    with pytest.raises(MedsegError, match=r"patient pattern '\(' is not a regular expression"):
        patient_of("a", "(")


def test_without_label_hides_the_mask_only() -> None:
    case = Case("a", Path("a.nii"), label=Path("m.nii"), regions=Path("r.nii"), patient="p")

    assert case.without_label() == Case("a", Path("a.nii"), regions=Path("r.nii"), patient="p")


def test_real_cardiac_cases_have_one_patient_each_for_two_phases(data_dir: Path) -> None:
    cases = load_cases(data_dir / "cardiac_mr", r"^(.*?)_")

    assert len(cases) == 20
    assert all(case.label is not None for case in cases)
