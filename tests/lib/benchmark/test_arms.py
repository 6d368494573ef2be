"""Choosing arms by name and building their settings."""

from __future__ import annotations

import pytest

from medseg.benchmark.arms import ArmResult, arm_config, choose_arms
from medseg.errors import MedsegError, NotFoundError
from medseg.methods.base import Arm


@pytest.mark.parametrize(
    ("changes", "group", "names"),
    [
        ({}, "segmentation", ["plain", "full"]),
        ({"arms": ("full", "broken")}, "segmentation", ["full", "broken"]),
        ({"arms": ("speed",)}, "speed", ["ours"]),
        ({"arms": ("ours",)}, "speed", ["ours"]),
        ({"task": "speed"}, "speed", ["ours"]),
    ],
)
def test_arms_are_found_by_name_group_or_preset(tiny, request_for, tmp_path, changes, group, names):
    found, _, arms = choose_arms(tiny, request_for(tmp_path, **changes))

    assert (found, [arm.name for arm in arms]) == (group, names)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"arms": ("ful",)},
            "no arm 'ful' in task segmentation; known arms: plain, full, broken, inside; tasks: .*speed",
        ),
        ({"arms": ("ours", "full")}, "no arm 'ours' in task segmentation"),
        ({"task": "sped"}, "no task 'sped'; known tasks: segmentation, speed"),
        ({"preset": "papr"}, "no preset 'papr'"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(tiny, request_for, tmp_path, changes, sentence):
    with pytest.raises(NotFoundError, match=sentence):
        choose_arms(tiny, request_for(tmp_path, **changes))


def test_settings_come_from_preset_request_and_arm_in_this_order(tiny, request_for, tmp_path):
    request = request_for(tmp_path, iterations=9, settings={"bias": True, "iterations": 5})

    config = arm_config(tiny, Arm("plain", {"bias": False}), request, seed=3)

    assert (config.learning_rate, config.iterations, config.bias, config.seed) == (0.5, 9, False, 3)


def test_arm_of_another_method_gets_the_same_budget(tiny, request_for, tmp_path):
    request = request_for(tmp_path, iterations=9)

    config = arm_config(tiny, Arm("other", {"width": 4}, method="supervised"), request, seed=1)

    assert (type(config).__name__, config.iterations, config.seed, config.width) == ("SupervisedConfig", 9, 1, 4)


def test_wrong_override_names_the_arm(tiny, request_for, tmp_path):
    with pytest.raises(MedsegError, match="arm x of tiny: TinyConfig has no setting 'bia'"):
        arm_config(tiny, Arm("x", {"bia": True}), request_for(tmp_path), seed=0)


def test_plain_mapping_is_a_result_with_the_rest_as_extra():
    result = ArmResult.of({"mean": 1.5, "seconds": 2.0, "gpu": "none"})

    assert (result.mean, result.seconds, result.extra) == (1.5, 2.0, {"gpu": "none"})
