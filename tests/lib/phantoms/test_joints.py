"""Joint phantoms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.cases import load_cases
from medseg.errors import MedsegError
from medseg.phantoms.joints import JOINTS, make_joint, write_joints


def test_bone_is_brighter_in_one_joint_and_darker_in_another() -> None:
    contrast = {}
    for name in JOINTS:
        image, mask = make_joint(name, 0)
        contrast[name] = image[mask > 0].mean() - image[(mask == 0) & (image > 40)].mean()
        assert set(np.unique(mask)) == set(range(len(JOINTS[name].bones) + 1))

    assert contrast["ankle"] > 30
    assert contrast["knee"] < -30


def test_equal_arguments_give_an_equal_phantom_and_seeds_differ() -> None:
    one, two, other = make_joint("knee", 1), make_joint("knee", 1), make_joint("knee", 2)
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])
    assert not np.array_equal(one[1], other[1])


def test_data_sets_share_the_tibia_by_name(tmp_path: Path) -> None:
    cases = load_cases(write_joints(tmp_path, 1, (16, 16, 4)))

    assert [case.names for case in cases] == [
        {1: "tibia", 2: "talus"},
        {1: "femur", 2: "tibia"},
        {1: "humerus"},
    ]


def test_unknown_joint_is_named() -> None:
    with pytest.raises(MedsegError, match="no joint 'hip'; known: ankle, knee, shoulder"):
        make_joint("hip", 0)
