"""Comparison of arms."""

from __future__ import annotations

from medseg.reports.bars import Column, compare_arms


def test_every_arm_has_its_mean_and_every_case_a_dot():
    arms = {"supervised": Column(0.8, 0.02, {"x": 0.7, "y": 0.9}), "full": Column(0.85, 0.01, {"x": 0.8, "y": 0.9})}

    [axes] = compare_arms(arms, "dice").axes

    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["supervised", "full"]
    assert {text.get_text() for text in axes.texts} == {"0.8", "0.85"}
    dots = [c.get_offsets()[:, 1].tolist() for c in axes.collections if len(c.get_offsets()) == 2]
    assert dots == [[0.7, 0.9], [0.8, 0.9]]


def test_axis_tells_unit_and_direction():
    [axes] = compare_arms({"ours": Column(0.5)}, "seconds per step", "s", higher_is_better=False).axes

    assert axes.get_ylabel() == "seconds per step [s] (lower is better)"
