"""Ratios that a group of arms declares."""

from __future__ import annotations

import pytest

from medseg.benchmark.ratios import arm_ratios, mean_over_seeds
from medseg.benchmark.tables import ratio_table
from medseg.methods import METHODS, method_class
from medseg.methods.base import Arm, ArmGroup

GROUP = ArmGroup((Arm("cam"), Arm("full")), "iou", ratios=(("full", "cam"), ("full", "upper", "dice")))
FULL = {"a": {"iou": 0.3, "dice": 0.6}, "b": {"iou": 0.5, "dice": 0.2}, "only": {"iou": 1.0}}
CAM = {"b": {"iou": 0.25}, "a": {"iou": 0.15}}


def test_ratio_is_of_the_cases_that_both_have():
    [found] = arm_ratios(GROUP, {"full": FULL, "cam": CAM})

    assert (found["arm"], found["to"], found["metric"], found["cases"]) == ("full", "cam", "iou", 2)
    assert found["ratio"] == pytest.approx(2.0)
    assert found["ci95"] == pytest.approx([2.0, 2.0])


def test_another_metric_and_a_mean_of_nothing_below():
    [found] = arm_ratios(GROUP, {"full": FULL, "upper": {"a": {"dice": 0.0}, "b": {"dice": 0.0}}})

    assert (found["metric"], found["ratio"], found["ci95"]) == ("dice", None, [None, None])
    assert ratio_table([found]).rows == (("full / upper", "dice", "∞", "∞ to ∞", "2"),)


def test_seeds_are_averaged_case_by_case():
    assert mean_over_seeds([{"a": {"iou": 0.2}}, {"a": {"iou": 0.4}, "b": {"iou": 1.0}}]) == {
        "a": {"iou": pytest.approx(0.3)},
        "b": {"iou": 1.0},
    }


@pytest.mark.parametrize("method", METHODS)
def test_declared_ratios_name_arms_of_their_group(method: str):
    for group in method_class(method).arm_groups.values():
        assert {arm for pair in group.ratios for arm in pair[:2]} <= {arm.name for arm in group.arms}


def test_dram_tells_the_ratios_of_its_paper():
    declared = method_class("dram").arm_groups["segmentation"].ratios
    assert declared == (("full", "cam"), ("no_candidates", "cam"), ("full", "supervised", "dice"))
