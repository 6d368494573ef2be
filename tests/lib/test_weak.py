from __future__ import annotations

from typing import Any

import pytest

from medseg.errors import UnusableInputError
from medseg.weak import WeakLabels, parse_weak


def test_everything_a_reader_can_say_survives_json() -> None:
    weak = parse_weak(
        {
            "extent": {"left upper": 25, "2": [10, 40.5]},
            "angles": {"max": 33.2},
            "landmarks": {"T1_TL": [10, 20], "S1": [1.5, 2, 3]},
            "landmark_unit": "mm",
            "domain": "vb2",
            "by": "reader",
        },
        "image a",
    )

    assert weak.extent == {"left upper": 25.0, "2": (10.0, 40.5)}
    assert weak.landmarks == {"T1_TL": (10.0, 20.0), "S1": (1.5, 2.0, 3.0)}
    assert WeakLabels.model_validate_json(weak.model_dump_json()) == weak


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"extent": {"1": 101}}, "'extent': extent of region 1 is 101"),
        ({"extent": {"1": [30, 20]}}, r"extent of region 1 is \(30"),
        ({"extent": {"1": float("nan")}}, "extent of region 1 is nan"),
        ({"angles": {"max": -1}}, r"angle max is -1.*0\.\.180"),
        ({"angles": {"main": 1}}, "there is no angle 'main'; known angles: angle_1, .*max, .*tl"),
        ({"angles": {"max": 20, "second": 31}}, "the first angle is 20, but another 31"),
        ({"angles": {"MT": 20, "cobb_mt": 20}}, "angle mt is told twice"),
        ({"angles": {"angle_1": 20, "max": 20}}, "two spellings"),
        ({"landmarks": {"a": [1]}}, "landmark a has 1 coordinates"),
        ({"landmarks": {"a": [1, float("inf")]}}, "must be finite"),
        ({"landmark_unit": "cm"}, "landmark_unit is 'cm'; give 'px' or 'mm'"),
        ({"extend": {}}, "'extend'"),
        ([1], "'weak'"),
    ],
)
def test_wrong_values_name_place_field_and_reason(value: Any, words: str) -> None:
    with pytest.raises(UnusableInputError, match=f"extents.csv line 4: .*{words}"):
        parse_weak(value, "extents.csv line 4")


def test_angles_above_a_right_angle_keep_their_order() -> None:
    weak = parse_weak({"angles": {"angle_2": 156.39, "angle_1": 180, "angle_3": 90.5}}, "labels.csv line 2")

    assert list(weak.angles.items()) == [("angle_2", 156.39), ("angle_1", 180.0), ("angle_3", 90.5)]
    assert list(WeakLabels.model_validate_json(weak.model_dump_json()).angles) == ["angle_2", "angle_1", "angle_3"]


def test_spellings_of_angles() -> None:
    weak = WeakLabels(angles={"angle_max": 30, "cobb_second": 20.2, "Third": 30.3})

    assert weak.angles == {"max": 30, "second": 20.2, "third": 30.3}
