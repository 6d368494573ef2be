"""Two models compared group by group."""

from __future__ import annotations

import pytest

from medseg.training.comparison import LARGEST_FALL, compare_groups, group_means

GROUPS = {"h0": "hip", "k0": "knee", "k1": "knee", "k2": "knee"}


def test_every_group_counts_alike() -> None:
    candidate = {"h0": 0.2, "k0": 0.9, "k1": 0.9, "k2": 0.9}
    champion = {"h0": 0.5, "k0": 0.7, "k1": 0.7, "k2": 0.7}

    found = compare_groups(candidate, champion, GROUPS)

    assert found.candidate == pytest.approx({"hip": 0.2, "knee": 0.9})
    assert found.gain == pytest.approx(-0.05)  # while the mean over cases rises from 0.65 to 0.725
    assert found.fallen == ["hip"]


def test_a_case_without_an_answer_counts_as_missed_and_its_group_as_unknown() -> None:
    found = compare_groups({"h0": 0.8, "k0": 0.6, "k1": 0.6, "k2": 0.0}, {"h0": 0.8}, GROUPS)

    assert found.champion == {"hip": 0.8, "knee": 0.0}
    assert (found.unknown, found.fallen) == (["knee"], [])
    assert found.gain == pytest.approx(0.2)


@pytest.mark.parametrize(("loss", "fallen"), [(LARGEST_FALL, []), (LARGEST_FALL + 0.001, ["hip"]), (-0.1, [])])
def test_a_group_may_lose_one_point_and_no_more(loss: float, fallen: list[str]) -> None:
    found = compare_groups({"h0": 0.8 - loss, "k0": 1.0}, {"h0": 0.8, "k0": 0.5}, GROUPS)

    assert found.fallen == fallen


def test_groups_without_a_case_are_left_out() -> None:
    assert group_means({"k0": 0.25, "k1": 0.75}, GROUPS) == {"knee": 0.5}


def test_models_that_cannot_be_judged_are_equal() -> None:
    assert compare_groups({}, {}, GROUPS).gain == 0.0
