from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.cases import Case
from medseg.errors import MedsegError, NotFoundError
from medseg.files import read_json, write_json
from medseg.methods import method_class
from medseg.training.split import FEW, SplitManifest, split_first, stable_hash


def case(identifier: str, labelled: bool = True, patient: str = "") -> Case:
    return Case(identifier, Path(f"{identifier}.nii"), Path("m.nii") if labelled else None, patient=patient)


def ids(cases: tuple[Case, ...]) -> list[str]:
    return [c.id for c in cases]


def names(below: bool, count: int, fraction: float = 0.2) -> list[str]:
    """Patient names whose hash lies below the fraction, or not, in order of their hash."""
    found = [f"p{i}" for i in range(200) if (stable_hash(f"p{i}") < fraction) == below][:count]
    return sorted(found, key=stable_hash)


def test_hash_is_the_same_on_every_machine() -> None:
    assert stable_hash("la_000") == pytest.approx(0.8483886, abs=1e-6)
    values = [stable_hash(str(i)) for i in range(2000)]
    assert sum(v < 0.2 for v in values) / 2000 == pytest.approx(0.2, abs=0.03)


def test_rule_2_hash_decides_with_enough_labels(tmp_path: Path) -> None:
    low, high = names(True, 2), names(False, 6)

    split = SplitManifest(tmp_path / "split.json").assign([case(p) for p in low + high])

    assert sorted(ids(split.validation)) == sorted(low)
    assert sorted(ids(split.training)) == sorted(high)
    assert split.labelled == 6


def test_rule_1_roles_stay_when_cases_are_added_and_rules_change(tmp_path: Path) -> None:
    low, high = names(True, 3), names(False, 8)
    first = SplitManifest(tmp_path / "split.json").assign([case(p) for p in high[:2]])  # rule 3: the lowest validates
    assert ids(first.validation) == high[:1]

    later = SplitManifest(tmp_path / "split.json", fraction=0.0).assign([case(p) for p in low + high])

    assert high[0] in ids(later.validation)
    assert high[1] in ids(later.training)
    assert set(read_json(tmp_path / "split.json")) == {*low, *high}


def test_rule_3_one_label_trains_and_the_second_validates(tmp_path: Path) -> None:
    a, b, c = names(False, 3)
    manifest = SplitManifest(tmp_path / "split.json")

    one = manifest.assign([case(a), case(b, False), case(c, False)])
    assert (ids(one.training), ids(one.validation)) == ([a], [])  # b and c can still validate
    two = manifest.assign([case(a), case(b), case(c, False)])
    assert (ids(two.training), ids(two.validation)) == ([a, c], [b])
    three = manifest.assign([case(a), case(b), case(c)])
    assert (ids(three.training), ids(three.validation)) == ([a, c], [b])


def test_rule_3_below_few_labels_exactly_one_validates_whatever_the_hashes(tmp_path: Path) -> None:
    low = names(True, FEW - 1)

    split = SplitManifest(tmp_path / "split.json").assign([case(p) for p in low])

    assert ids(split.validation) == [low[0]]
    assert sorted(ids(split.training)) == sorted(low[1:])


@pytest.mark.parametrize("below", [True, False])
def test_enough_labels_always_give_both_sides(tmp_path: Path, below: bool) -> None:
    patients = names(below, FEW)

    split = SplitManifest(tmp_path / "split.json").assign([case(p) for p in patients])

    assert len(split.validation) >= 1
    assert split.labelled >= 1


def test_rule_4_unlabelled_images_of_validating_patients_are_reserved(tmp_path: Path) -> None:
    low, high = names(True, 2), names(False, 5)
    cases = [case(p) for p in (*high, low[0])]
    cases += [case("again", False, patient=low[0]), case("later", False, patient=low[1]), case("free", False, high[0])]

    split = SplitManifest(tmp_path / "split.json").assign(cases)

    assert ids(split.validation) == [low[0]]
    assert sorted(ids(split.training)) == sorted([*high, "free"])


def test_rule_5_explicit_list_replaces_the_hash(tmp_path: Path) -> None:
    low, high = names(True, 2), names(False, 3)
    cases = [case(p) for p in low + high] + [case("u", False, patient=high[0]), case("v", False, patient="new")]
    manifest = SplitManifest(tmp_path / "split.json", explicit=[high[0], "v"])

    split = manifest.assign(cases)

    assert ids(split.validation) == [high[0]]
    assert sorted(ids(split.training)) == sorted([*low, *high[1:]])
    with pytest.raises(NotFoundError, match="validation list names typo, which is no case"):
        SplitManifest(tmp_path / "other.json", explicit=["typo"]).assign(cases)
    assert not (tmp_path / "other.json").exists()


def test_fraction_0_validates_nobody(tmp_path: Path) -> None:
    split = SplitManifest(tmp_path / "split.json", fraction=0).assign([case(p) for p in names(True, 6)])

    assert (len(split.training), len(split.validation)) == (6, 0)
    with pytest.raises(MedsegError, match=r"validation_fraction = 1 is outside \[0, 1\)"):
        SplitManifest(tmp_path / "split.json", fraction=1)


@st.composite
def growing_pools(draw: st.DrawFn) -> list[list[Case]]:
    """A pool of images that gets more images and more labels from round to round."""
    count = draw(st.integers(1, 30))
    patients = [f"patient{draw(st.integers(0, 12))}" for _ in range(count)]
    labelled_since = [draw(st.integers(0, 5)) for _ in range(count)]
    there_since = [min(draw(st.integers(0, 3)), since) for since in labelled_since]
    return [
        [case(f"c{i}", labelled_since[i] <= turn, patients[i]) for i in range(count) if there_since[i] <= turn]
        for turn in range(4)
    ]


@settings(max_examples=60, deadline=None)
@given(pools=growing_pools(), fraction=st.sampled_from([0.0, 0.2, 0.5]))
def test_whatever_happens_no_patient_is_on_both_sides_and_roles_never_change(
    pools: list[list[Case]], fraction: float
) -> None:
    with TemporaryDirectory() as folder:
        validated: set[str] = set()
        trained: set[str] = set()
        for pool in pools:
            split = SplitManifest(Path(folder) / "split.json", fraction).assign(pool)
            training, validation = ({c.patient for c in side} for side in (split.training, split.validation))
            assert not training & validation
            assert training & validated == set()
            assert validation & trained == set()
            trained |= training if any(c.label for c in pool) else set()  # without a label nothing is trained
            validated |= validation
            assert all(c.label is not None for c in split.validation)
            people = {c.patient for c in pool if c.label}
            if len(people) >= 2 and fraction > 0:
                assert validation
            if people:
                assert split.labelled >= 1


def test_first_labels_train_and_validation_comes_from_the_rest() -> None:
    low, high = names(True, 3), names(False, 6)
    cases = [case(p) for p in (low[0], *high[:2], low[1], *high[2:], low[2])] + [case("u", False)]

    split = split_first(cases, 3, 0.2)

    assert [c.id for c in split.training if c.label] == [low[0], *high[:2]]
    assert ids(split.validation) == [low[1], low[2]]
    assert [c.id for c in split.training if not c.label] == [*high[2:], "u"]
    with pytest.raises(MedsegError, match=r"--labelled 10 is outside 1\.\.9"):
        split_first(cases, 10, 0.2)


@pytest.mark.parametrize("labelled", [0, 1, 2, 8])
def test_rule_6_a_method_without_labels_learns_from_every_image_and_nobody_loses_a_role(
    tmp_path: Path, labelled: int
) -> None:
    low, high = names(True, 3), names(False, 9)
    cases = [case(p, labelled=index < labelled) for index, p in enumerate(high + low)]
    kind = method_class("local_discrimination")

    split = SplitManifest(tmp_path / "split.json").assign(cases, kind)
    others = SplitManifest(tmp_path / "split.json").assign(cases)

    assert ids(split.training) == ids(tuple(cases))
    assert len(split.validation) == (0 if labelled < 2 else 1)
    assert split.labelled == labelled - len(split.validation)  # the image that validates comes without its label
    assert ids(others.validation) == ids(split.validation)
    if labelled < 2:  # what was learnt from without a label may still validate
        assert set(read_json(tmp_path / "split.json", default={})) <= {c.id for c in cases if c.label}


def test_rule_6_holds_for_a_given_number_of_labels() -> None:
    low, high = names(True, 2), names(False, 3)
    cases = [case(p) for p in high + low]

    split = split_first(cases, 1, 0.2, method_class("local_discrimination"))

    assert ids(split.training) == high + low
    assert [c.id for c in split.training if c.label] == high[:1]
    assert ids(split.validation) == low


def test_manifest_only_grows(tmp_path: Path) -> None:
    write_json(tmp_path / "split.json", {"gone": "validation", "p": "training"})

    SplitManifest(tmp_path / "split.json").assign([case("p"), case("q")])

    roles = read_json(tmp_path / "split.json")
    assert roles.keys() == {"gone", "p", "q"}
    assert (roles["gone"], roles["p"]) == ("validation", "training")


def test_every_data_set_of_a_union_validates(tmp_path: Path) -> None:
    cases = [
        Case(f"{name}{i}", Path("x.png"), Path("x.png"), dataset=name)
        for name, n in (("a", 20), ("b", 3))
        for i in range(n)
    ]
    split = SplitManifest(tmp_path / "split.json").assign(cases)

    assert sum(case.dataset == "b" for case in split.validation) == 1
    assert sum(case.dataset == "a" for case in split.validation) >= 1
    again = SplitManifest(tmp_path / "split.json").assign(
        [*cases, Case("b9", Path("x.png"), Path("x.png"), dataset="b")]
    )
    assert {case.id for case in split.validation} <= {case.id for case in again.validation}
