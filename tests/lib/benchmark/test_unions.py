"""Figures of the parts of a union."""

from __future__ import annotations

import pytest

from medseg.benchmark.tables import group_table
from medseg.benchmark.unions import summarise_groups

GROUPS = {"h0": "hip", "k0": "knee", "k1": "knee", "k2": "knee"}
BY_SEED = {"0": {"h0": 0.2, "k0": 0.6, "k1": 0.8, "k2": 1.0}, "1": {"h0": 0.4, "k0": 0.6, "k1": 0.8, "k2": 1.0}}


def test_groups_have_means_of_their_own_and_count_alike():
    found = summarise_groups(BY_SEED, GROUPS)

    assert found["groups"]["hip"] == pytest.approx({"mean": 0.3, "sd": 0.02**0.5, "cases": 1})
    assert found["groups"]["knee"] == pytest.approx({"mean": 0.8, "sd": 0.0, "cases": 3})
    assert found["over_groups"] == pytest.approx({"mean": 0.55, "sd": 0.02**0.5 / 2})


def test_one_group_says_nothing_more():
    assert summarise_groups(BY_SEED, dict.fromkeys(GROUPS, "all")) == {}
    assert summarise_groups({}, GROUPS) == {}


def test_table_has_a_column_for_every_group():
    arms = {"a": summarise_groups(BY_SEED, GROUPS), "b": summarise_groups({"0": {"k0": 0.9, "h0": 0.1}}, GROUPS)}

    table = group_table(arms, higher=True)

    assert table.header == ("arm", "hip (1)", "knee (3)", "mean over groups", "sd over seeds")
    assert table.rows[0] == ("a", "0.3000", "0.8000", "0.5500", "0.0707")
    assert table.bold == {(0, 1), (1, 2), (0, 3)}
    assert group_table({"a": {}}, higher=True) is None
