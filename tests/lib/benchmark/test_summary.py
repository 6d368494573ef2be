"""The paired tests of a summary."""

from __future__ import annotations

import pytest

from medseg.benchmark.summary import paired_tests, summarise_arm


def test_tested_arm_meets_every_other_one_patient_by_patient():
    full = {f"p{i}_a": 0.8 + 0.01 * i for i in range(6)} | {f"p{i}_b": 0.8 for i in range(6)}
    shared = {case: value - 0.1 - 0.01 * int(case[1]) for case, value in full.items()}
    patient = {case: case[:2] for case in full}

    tests = paired_tests({"shared": shared, "full": full}, "full", patient)

    found = tests["against"]["shared"]
    assert tests["tested"] == "full"
    assert (found["higher"], found["patients"]) == (6, 6)  # 12 cases of 6 patients
    assert found["mean"] == pytest.approx(0.125)
    assert found["p"] == pytest.approx(2 / 64)
    assert found["ci95"][0] < 0.125 < found["ci95"][1]


def test_p_is_corrected_for_the_number_of_arms():
    arms = {name: {f"c{i}": value * (i + 1) for i in range(6)} for name, value in (("a", 0), ("b", 1), ("full", 2))}

    found = paired_tests(arms, None, {})["against"]

    assert [found[name]["p"] for name in "ab"] == pytest.approx([2 / 64] * 2)
    assert [found[name]["p_holm"] for name in "ab"] == pytest.approx([4 / 64] * 2)


def test_one_arm_alone_is_not_tested():
    assert paired_tests({"full": {"a": 1.0}}, "full", {}) == {}
    assert paired_tests({"a": {"x": 1.0}, "b": {"y": 1.0}}, None, {}) == {"tested": "b", "against": {}}


def test_what_an_arm_chose_is_kept_by_seed():
    def result(labelled):
        kept = {"iterations": 2, "seconds": 1.0, "peak_memory_mb": 1.0, "missed": 0, "skipped": [], "mean": None}
        return {**kept, "cases": {"x": {"dice": 0.5}}, "labelled": labelled, "extra": {"note": labelled}}

    chosen = summarise_arm({0: [(None, result(["a"]))], 1: [(None, result(["b"]))]}, "dice", "random_1")
    given = summarise_arm({0: [(None, result(None))]}, "dice", "full")

    assert chosen["labelled_by_seed"] == {"0": [["a"]], "1": [["b"]]}
    assert chosen["extra_by_seed"] == {"0": {"note": ["a"]}, "1": {"note": ["b"]}}
    assert given["labelled_by_seed"] == {}
