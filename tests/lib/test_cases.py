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
    touch(tmp_path / "labels" / "regions" / "x.nii.gz", tmp_path / ".medseg" / "z.nii.gz")
    (tmp_path / "labels.json").write_text("{}")
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
        Case("a", Path("a.nii"), label=Path("m.nii"), weak=WeakLabels(angles={"max": 12.5}), domain="d", patient="p"),
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


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    """A plain folder with the images a, b, c and a table."""
    touch(*(folder / "images" / f"{name}.png" for name in "abc"))
    (folder / name).write_text(text)
    return folder


def test_plain_folder_reads_its_tables(tmp_path: Path) -> None:
    table(tmp_path, "image,case,domain,angle_1_deg\na.png,7,T1,120\nb,7,,\n")
    table(tmp_path, "image,x0,y0\nb.png,1,2\n", "landmarks.csv")

    a, b, c = load_cases(tmp_path)

    assert a.weak == WeakLabels(angles={"angle_1": 120.0}, domain="T1", source="table")
    assert b.weak == WeakLabels(landmarks={"0": (1.0, 2.0)}, source="table")
    assert [case.patient for case in (a, b, c)] == ["7", "7", "c"]
    assert [case.domain for case in (a, b, c)] == ["T1", None, None]
    assert (c.weak, a.label) == (None, None)
    assert load_cases(save_cases(tmp_path / "cases.json", [a, b, c])) == [a, b, c]


def test_bad_row_leaves_nothing_half_imported(tmp_path: Path) -> None:
    table(tmp_path, "image,angle_1\na,10\nb,200\n")

    with pytest.raises(UnusableInputError, match=r"labels\.csv line 3, column 'angle_1': .*0\.\.180"):
        load_cases(tmp_path)


def test_index_of_the_server_wins_over_the_table(tmp_path: Path) -> None:
    table(tmp_path, "image,patient,domain,angle_1\na,p1,T1,10\nb,p1,T1,10\n")
    info = {"weak": {"angles": {"max": 33}, "source": "reader"}, "patient": "p9"}
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": {"a": {"image": {"info": info}}}}))

    a, b, _ = load_cases(tmp_path)

    assert a.weak == WeakLabels(angles={"max": 33.0}, source="reader")
    assert (a.patient, a.domain) == ("p9", "T1")
    assert b.weak is not None
    assert (b.weak.angles, b.patient) == ({"angle_1": 10.0}, "p1")


def test_patient_of_the_table_wins_over_the_pattern(tmp_path: Path) -> None:
    table(tmp_path, "image,patient\na,p1\nb,\n")

    assert [case.patient for case in load_cases(tmp_path, r"^([ab])")] == ["p1", "b", "c"]


def test_union_keeps_the_patients_of_the_tables(tmp_path: Path) -> None:
    one = table(tmp_path / "one", "image,case\na,7\nb,7\n")
    two = table(tmp_path / "two", "image,patient\na,7\nb,8\n")

    cases = {case.id: case.patient for case in load_cases([one, two])}

    alone = {f"one_{case.id}": case.patient for case in load_cases(one)}
    assert alone == {"one_a": "7", "one_b": "7", "one_c": "c"}  # adding a data set changes nobody's name
    assert cases == {**alone, "two_a": "7", "two_b": "8", "two_c": "c"}


def test_studies_folder_has_no_table(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("1,atrium\n")

    assert [(case.id, case.weak) for case in load_cases(tmp_path)] == [("a", None)]


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


def test_real_spine_cases_have_angles_corners_and_patients(data_dir: Path) -> None:
    cases = load_cases(data_dir / "spine_xray")

    assert len(cases) == 466
    weak = [case.weak for case in cases if case.weak is not None]
    assert len(weak) == 466
    assert {tuple(labels.angles) for labels in weak} == {("angle_1", "angle_2", "angle_3")}
    assert {tuple(labels.landmarks) for labels in weak} == {tuple(str(n) for n in range(68))}
    assert {(labels.landmark_unit, labels.source, labels.domain) for labels in weak} == {("px", "table", None)}
    assert max(labels.angles["angle_1"] for labels in weak) == pytest.approx(156.39)
    assert all(
        labels.angles["angle_1"] >= max(labels.angles.values()) for labels in weak
    )  # stored order: largest first
    assert (cases[0].id, cases[0].patient) == ("spine_000", "162")
    assert weak[0].angles == {"angle_1": 41.139, "angle_2": 14.63, "angle_3": 40.147}
    assert weak[0].landmarks["1"] == (242.51, 35.66)
    assert len({case.patient for case in cases}) == 215


def test_real_cephalometric_cases_have_landmarks(data_dir: Path) -> None:
    cases = load_cases(data_dir / "cephalometric")

    assert len(cases) == 148
    assert all(case.weak is not None and len(case.weak.landmarks) == 19 for case in cases)
    assert cases[0].weak is not None
    assert cases[0].weak.landmarks["18"] == (221.33, 445.33)
    assert cases[0].weak.angles == {}
    assert [case.patient for case in cases] == [case.id for case in cases]


def test_real_union_keeps_the_patients(data_dir: Path) -> None:
    alone = {case.id: case.patient for case in load_cases(data_dir / "spine_xray")}

    joined = load_cases([data_dir / "spine_xray", data_dir / "cephalometric"])

    assert len(joined) == 614
    assert {case.id: case.patient for case in joined if case.dataset == "spine_xray"} == alone
