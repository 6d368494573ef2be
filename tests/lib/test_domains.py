"""Domains as data: which domain a case belongs to, and what said so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medseg.cases import Case
from medseg.domains import Domain, DomainRegistry, Resolution, aliases_of, assign_domains, file_prefix
from medseg.errors import MedsegError, NotFoundError
from medseg.weak import WeakLabels


def case(name: str, dataset: str = "spine", **more: object) -> Case:
    return Case(id=name, image=Path(f"{name}.nii.gz"), dataset=dataset, **more)  # type: ignore[arg-type]


REGISTRY = DomainRegistry(
    {
        "vb1": Domain("vb1", ("body",)),
        "vb2": Domain("vb2", ("body",)),
        "heart": Domain("heart", ("lv", "rv"), aliases=("cine", "cardiac_mr")),
    }
)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (case("vb1_02", domain="heart", weak=WeakLabels(domain="vb2")), Resolution("heart", "request")),
        (case("vb1_02", domain="vb2", weak=WeakLabels(domain="vb2")), Resolution("vb2", "image info")),
        (case("vb1_02", weak=WeakLabels(domain="vb2")), Resolution("vb2", "image info")),
        (case("vb1_02", dataset="cardiac_mr"), Resolution("vb1", "file name")),
        (case("cine_7"), Resolution("heart", "file name")),
        (case("patient001_frame01", dataset="cardiac_mr"), Resolution("heart", "data set")),
        (case("scan"), None),
    ],
)
def test_what_is_stated_wins_over_the_file_name_and_the_data_set(asked: Case, expected: Resolution | None) -> None:
    assert REGISTRY.resolve(asked) == expected


def test_unknown_domain_that_is_stated_is_refused_by_name() -> None:
    with pytest.raises(NotFoundError, match="no domain 'hip'; this model knows vb1, vb2, heart"):
        REGISTRY.resolve(case("vb1_02", domain="hip"))


def test_file_names_divide_a_data_set_where_several_cases_share_a_prefix() -> None:
    cases = [case(f"vb{k}_{i:02d}") for k in (1, 2) for i in range(3)] + [case("odd"), case("vb9_01")]

    found = assign_domains(cases)

    assert [found[c.id] for c in cases] == ["vb1"] * 3 + ["vb2"] * 3 + ["spine"] * 2


def test_many_prefixes_are_patients_and_not_domains() -> None:
    cases = [case(f"joint{k}_{i}") for k in range(9) for i in range(2)]
    assert set(assign_domains(cases).values()) == {"spine"}


@pytest.mark.parametrize("word", ["pat", "patient", "sub-", "Case", "img", "scan_", ""])
def test_words_that_number_patients_and_files_are_no_domains(word: str) -> None:
    cases = [case(f"{word}{k}_{i}") for k in range(5) for i in range(2)]

    assert set(assign_domains(cases).values()) == {"spine"}
    assert aliases_of("spine", cases[:2]) == ()
    assert set(assign_domains(cases, r"^(.*)_\d$").values()) != {"spine"}  # a rule that somebody set is followed


def test_dicom_headers_divide_a_data_set() -> None:
    parts = ["KNEE", "KNEE", "ANKLE", "ANKLE", "HIP", ""]
    cases = [
        case(f"1.2.{i}", tags={"BodyPartExamined": part, "SeriesDescription": "t1"}) for i, part in enumerate(parts)
    ]
    registry = DomainRegistry({"knee": Domain("knee"), "ankle": Domain("ankle")})

    assert list(assign_domains(cases).values()) == ["knee", "knee", "ankle", "ankle", "t1", "t1"]
    assert registry.resolve(cases[0]) == Resolution("knee", "DICOM tags")
    assert registry.resolve(cases[4]) is None
    assert Case.from_dict(cases[0].to_dict()) == cases[0]


def test_part_of_a_study_is_divided_as_the_whole_study_is() -> None:
    cases = [case(f"vb{k}_{i:02d}") for k in (1, 2) for i in range(2)]
    whole = assign_domains(cases)
    marked = [replace(c, group=whole[c.id]) for c in cases]

    assert set(assign_domains(cases[::2]).values()) == {"spine"}  # one of each: prefixes that nobody shares
    assert list(assign_domains(marked[::2]).values()) == ["vb1", "vb2"]
    assert assign_domains([replace(marked[0], domain="t1")])["vb1_00"] == "t1"
    assert Case.from_dict(marked[0].to_dict()) == marked[0]


def test_what_was_inferred_of_a_case_is_followed_but_no_domain_that_the_model_lacks() -> None:
    odd = case("x_1", tags={"BodyPartExamined": "vb1 vb2"})

    assert REGISTRY.resolve(odd) is None
    assert REGISTRY.resolve(replace(odd, group="vb2")) == Resolution("vb2", "inferred")
    assert REGISTRY.resolve(replace(odd, group="knee")) is None
    assert REGISTRY.resolve(case("x_1", dataset="heart", group="heart")) == Resolution("heart", "data set")


def test_stated_domains_are_taken_as_they_are() -> None:
    cases = [case("vb1_01", domain="t1"), case("vb1_02", weak=WeakLabels(domain="t2")), case("x", dataset="")]
    assert list(assign_domains(cases).values()) == ["t1", "t2", "images"]


def test_aliases_are_what_all_cases_of_a_domain_share() -> None:
    cases = [case("la_000", dataset="atrium"), case("la_001", dataset="atrium")]
    assert set(aliases_of("heart", cases)) == {"la", "atrium"}
    assert aliases_of("heart", [*cases, case("x_1", dataset="other")]) == ()
    assert aliases_of("heart", cases, [case("la_002", dataset="other")]) == ("atrium",)
    assert aliases_of("heart", cases, [case("x_1", dataset="atrium")]) == ("la",)


def test_prefix_comes_from_the_file_whatever_the_id() -> None:
    renamed = replace(case("vb1_02"), id="site_a_vb1_02")
    assert file_prefix(renamed) == "vb1"
    assert file_prefix(case("patient001_frame01")) is None


def test_domain_survives_json() -> None:
    domain = Domain("a", ("x", "y"), {"1": "x", "2": "y"}, ("al",), (1.0, 1.0, 3.0), (64, 48), 0, "window:0,1")
    assert Domain.from_dict("a", domain.to_dict()) == domain


def test_values_of_instances_all_mean_one_label() -> None:
    assert Domain("a", ("body",), {"*": "body"}).names_of([1, 9]) == {1: "body", 9: "body"}
    assert Domain("a", ("x",), {"1": "x"}).names_of([1, 2]) == {1: "x"}


@pytest.mark.parametrize(("pattern", "words"), [("(", "not a regular expression"), ("a+", "needs a group")])
def test_wrong_pattern_is_one_sentence(pattern: str, words: str) -> None:
    with pytest.raises(MedsegError, match=words):
        DomainRegistry({}, pattern)


def test_dicom_tags_name_a_domain(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm")
    if path is None:
        pytest.skip("pydicom's test file is not there")
    dataset = pydicom.dcmread(path)
    dataset.BodyPartExamined = "KNEE"
    dataset.SeriesDescription = "t1 sag"
    dataset.save_as(tmp_path / "slice.dcm")
    registry = DomainRegistry({"knee": Domain("knee"), "t2": Domain("t2")})

    assert registry.resolve(Case("s", tmp_path / "slice.dcm")) == Resolution("knee", "DICOM tags")
