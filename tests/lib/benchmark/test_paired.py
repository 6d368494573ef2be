"""Paired tests of a benchmark, over all patients and in each part of a union."""

from __future__ import annotations

import pytest

from medseg.benchmark.paired import all_tests, paired_tests
from medseg.benchmark.tables import paired_tables


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


def test_every_named_arm_is_tested_against_all_others():
    arms = {name: {f"c{i}": value * (i + 1) for i in range(6)} for name, value in (("a", 0), ("b", 1), ("full", 2))}

    found = all_tests(arms, ("full", "b", "absent"), {}, {})

    assert [(tests["tested"], list(tests["against"])) for tests in found] == [
        ("full", ["a", "b"]),
        ("b", ["a", "full"]),
    ]
    assert found[1]["against"]["full"]["mean"] == pytest.approx(-3.5)
    assert all_tests(arms, "full", {}, {}) == found[:1]
    assert [tests["tested"] for tests in all_tests(arms, ("absent",), {}, {})] == ["full"]
    assert all_tests({"full": arms["full"]}, ("full",), {}, {}) == []


def test_differences_are_told_of_each_domain_beside_the_pooled_test():
    gain = {"a_1": 0.3, "a_2": 0.1, "b_1": -0.1}  # better in one domain, worse in the other
    arms = {"shared": dict.fromkeys(gain, 0.5), "full": {case: 0.5 + more for case, more in gain.items()}}
    groups = {case: case[0] for case in gain}

    tests = paired_tests(arms, "full", {}, groups)

    found = tests["against"]["shared"]
    assert found["mean"] == pytest.approx(0.1)
    assert {name: (d["patients"], d["higher"]) for name, d in found["groups"].items()} == {"a": (2, 2), "b": (1, 0)}
    assert found["groups"]["a"]["mean"] == pytest.approx(0.2)
    assert found["groups"]["b"]["ci95"] == pytest.approx([-0.1, -0.1])
    assert "groups" not in paired_tests(arms, "full", {}, dict.fromkeys(gain, "a"))["against"]["shared"]
    pooled, by_domain = paired_tables(tests)
    assert (len(pooled.rows), len(by_domain.rows)) == (1, 2)
    assert paired_tables({}) == []
