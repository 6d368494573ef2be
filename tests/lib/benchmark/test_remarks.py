"""Sentences about what cannot be compared plainly."""

from __future__ import annotations

from medseg.benchmark.remarks import case_remarks, code_remarks


def test_runs_of_other_sources_are_named():
    codes = {f"full_seed{i}": ["aaa"] for i in range(5)} | {"plain_seed0": ["old", "aaa"], "plain_seed1": []}

    assert code_remarks(codes) == [
        "The runs were not all made by the same sources of medseg: full_seed0, full_seed1, full_seed2 and 2 more by "
        "aaa; plain_seed0 by old then aaa; plain_seed1 by unknown sources. Delete folders of runs/ to make them again."
    ]


def test_one_run_that_two_versions_made_is_told_and_equal_ones_are_not():
    assert len(code_remarks({"full_seed0": ["old", "new"]})) == 1
    assert code_remarks({"a": ["x"], "b": ["x"]}) == code_remarks({}) == code_remarks({"a": [], "b": []}) == []


def test_arm_that_was_judged_on_fewer_cases_is_named():
    arms = {"full": {"a": 1.0, "b": 1.0, "c": 0.5}, "individual": {"a": 1.0}, "timing": {}}

    assert case_remarks(arms) == [
        "Arm individual was judged on 1 of 3 cases, without b, c: its mean is one of other cases; differences, tests "
        "and ratios use the cases that both arms have."
    ]
    assert case_remarks({"full": {"a": 1.0}, "plain": {"a": 0.0}}) == []
