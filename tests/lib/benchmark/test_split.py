"""The split of a benchmark: by patient, stable, nothing on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.benchmark.split import split_cases
from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.multidomain.presets import PRESETS


def make_cases(count: int, masks: int | None = None, per_patient: int = 1) -> list[Case]:
    return [
        Case(
            id=f"c{i:02d}",
            image=Path(f"c{i:02d}.png"),
            label=Path(f"c{i:02d}.png") if masks is None or i < masks else None,
            patient=f"p{i // per_patient}",
        )
        for i in range(count)
    ]


def test_first_cases_keep_their_mask_and_the_rest_is_unlabelled():
    [split] = split_cases(make_cases(20), labelled=4, held_out=6)

    assert split.labelled == ("c00", "c01", "c02", "c03")
    assert len(split.held_out) == 6
    assert len(split.training) == 14
    assert all(case.label is not None for case in split.held_out)


def test_no_case_trains_and_is_held_out():
    for labelled, held_out, folds in [(4, 6, 1), (None, 0.3, 1), (3, 1, 4)]:
        for split in split_cases(make_cases(20, masks=16), labelled, held_out, folds):
            assert not {case.id for case in split.training} & {case.id for case in split.held_out}


def test_patients_are_never_divided():
    [split] = split_cases(make_cases(24, per_patient=3), labelled=4, held_out=5)

    trained, held_out = ({case.patient for case in part} for part in (split.training, split.held_out))
    assert not trained & held_out
    assert len(split.held_out) == 6  # the sixth belongs to the fifth one's patient
    assert split.labelled == ("c00", "c01", "c02", "c03")


def test_held_out_cases_do_not_depend_on_list_order_beyond_the_labelled():
    cases = make_cases(20)
    [forward] = split_cases(cases, 4, 5)
    [backward] = split_cases(cases[:4] + cases[:3:-1], 4, 5)

    assert {case.id for case in forward.held_out} == {case.id for case in backward.held_out}


def test_unlabelled_image_of_a_held_out_patient_is_not_learnt_from():
    cases = [*make_cases(12, masks=6), Case("twin", Path("twin.png"), patient="p5")]
    [split] = split_cases(cases, 5, 1)

    assert [case.id for case in split.held_out] == ["c05"]
    assert "twin" not in {case.id for case in split.training}


def test_share_of_the_masks_is_held_out_and_all_others_stay_labelled():
    [split] = split_cases(make_cases(12, masks=10), None, 0.2)

    assert (len(split.held_out), len(split.labelled), len(split.training)) == (2, 8, 10)


def test_folds_report_on_every_masked_case_once():
    splits = split_cases(make_cases(11, masks=10, per_patient=2), None, 1, folds=3)

    reported = sorted(case.id for split in splits for case in split.held_out)
    assert reported == [f"c{i:02d}" for i in range(10)]


def test_folds_label_the_first_cases_that_are_left():
    for split in split_cases(make_cases(10), 2, 1, folds=5):
        left = [case.id for case in split.training]
        assert list(split.labelled) == left[:2]


@pytest.mark.parametrize(
    ("labelled", "held_out", "folds", "sentence"),
    [
        (0, 2, 1, r"--labelled 0 is outside 1\.\.6"),
        (7, 2, 1, r"--labelled 7 is outside 1\.\.6"),
        (4, 3, 1, "3 held-out cases cannot be taken from 6"),
        (None, 6, 1, "6 held-out cases cannot be taken from 6"),
        (None, 1, 7, "7 folds are outside"),
        (6, 1, 2, "more than the 3 labelled"),
    ],
)
def test_what_cannot_be_split_is_named(labelled, held_out, folds, sentence):
    with pytest.raises(MedsegError, match=sentence):
        split_cases(make_cases(8, masks=6), labelled, held_out, folds)


def union(*sizes: int) -> list[Case]:
    """Data sets of so many cases each, one after the other."""
    return [
        Case(id=f"{name}{i:02d}", image=Path("x.png"), label=Path("x.png"), dataset=name)
        for name, size in zip("abc", sizes, strict=False)
        for i in range(size)
    ]


def count(ids, name: str) -> int:
    return sum(identifier.startswith(name) for identifier in ids)


def test_every_data_set_has_its_share_of_labels_and_held_out_cases():
    [split] = split_cases(union(20, 6, 10), labelled=7, held_out=6)

    assert split.labelled == ("a00", "a01", "a02", "b00", "b01", "c00", "c01")
    assert [count((case.id for case in split.held_out), name) for name in "abc"] == [2, 2, 2]


def test_folds_are_dealt_within_every_data_set():
    for split in split_cases(union(6, 3, 9), None, 1, folds=3):
        assert [count((case.id for case in split.held_out), name) for name in "abc"] == [2, 1, 3]


def test_data_set_that_runs_out_leaves_its_turn_to_the_others():
    [split] = split_cases(union(8, 2), labelled=4, held_out=3)

    assert split.labelled == ("a00", "a01", "b00", "b01")
    assert count((case.id for case in split.held_out), "a") == 3


UNIONS = {
    "vertebrae": {"vb1": (6, 1), "vb2": (6, 1), "vb3": (6, 1)},
    "organs": {"cardiac": (20, 2), "prostate": (9, 1), "hippocampus": (40, 1), "atrium": (80, 1)},
}


def domains(name: str) -> list[Case]:
    """A union with the sizes of the real one: domain -> cases, and how many of them each patient has."""
    return [
        Case(f"{domain}_{i:02d}", Path("x.nii"), Path("x.nii"), patient=f"{domain}_p{i // each}", dataset=domain)
        for domain, (size, each) in UNIONS[name].items()
        for i in range(size)
    ]


@pytest.mark.parametrize(
    ("union_name", "preset", "held_out", "training"),
    [
        ("vertebrae", "cpu", (3, 3, 3), (3, 3, 3)),
        ("vertebrae", "paper", (2, 2, 2), (4, 4, 4)),
        ("organs", "cpu", (4, 2, 2, 2), (16, 7, 38, 78)),
        ("organs", "paper", (6, 3, 12, 24), (14, 6, 28, 56)),
    ],
)
def test_no_domain_is_held_out_as_a_whole(union_name, preset, held_out, training):
    budget, cases = PRESETS[preset], domains(union_name)
    [split] = split_cases(cases, budget.labelled, budget.held_out)

    def sizes(part: tuple[Case, ...]) -> tuple[int, ...]:
        return tuple(sum(case.dataset == domain for case in part) for domain in UNIONS[union_name])

    assert (sizes(split.held_out), sizes(split.training)) == (held_out, training)


def test_the_last_patient_of_a_group_trains():
    [split] = split_cases(union(6, 1, 2), None, 0.9)
    [exact] = split_cases(union(6, 1, 2), None, 6)

    assert [count((case.id for case in split.held_out), name) for name in "abc"] == [5, 0, 1]
    assert [count((case.id for case in exact.held_out), name) for name in "abc"] == [5, 0, 1]
    with pytest.raises(MedsegError, match="7 held-out cases cannot be taken from 9 labelled cases"):
        split_cases(union(6, 1, 2), None, 7)
