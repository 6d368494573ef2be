"""Slicer markups: places, names, numbers."""

from __future__ import annotations

import json

import pytest

from medseg.inference.markups import markups_json
from medseg.methods.base import Markup, Measurement


def test_volume_points_go_from_ras_to_lps_with_their_names() -> None:
    markup = Markup("Fiducial", "landmarks", ((1.0, 2.0, 3.0), (-4.0, 5.0, 6.0)), ("apex", "base"), (0.9, 0.25))
    [content] = markups_json([markup])["markups"]
    assert [point["position"] for point in content["controlPoints"]] == [[-1.0, -2.0, 3.0], [4.0, -5.0, 6.0]]
    assert [point["label"] for point in content["controlPoints"]] == ["apex", "base"]
    assert content["controlPoints"][1]["description"] == "confidence 0.25"
    assert content["coordinateSystem"] == "LPS"


def test_picture_points_keep_their_signs_and_lie_at_z_0() -> None:
    [content] = markups_json([Markup("Line", "end plate", ((10.0, 20.0), (30.0, 25.0)))])["markups"]
    assert [point["position"] for point in content["controlPoints"]] == [[10.0, 20.0, 0.0], [30.0, 25.0, 0.0]]
    assert [point["label"] for point in content["controlPoints"]] == ["1", "2"]


def test_a_measurement_is_shown_with_its_unit() -> None:
    angle = Markup("Angle", "Cobb MT", ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)), measurement=Measurement(42.5, "deg"))
    content = json.loads(json.dumps(markups_json([angle])))["markups"][0]
    assert content["measurements"][0]["value"] == 42.5
    assert content["measurements"][0]["units"] == "deg"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("Circle", "x", ((0.0, 0.0),)), "Fiducial"),
        (("Line", "x", ((0.0,), (1.0,))), "neither 2D nor 3D"),
        (("Line", "x", ((0.0, 0.0), (1.0, 1.0)), ("a",)), "2 points but 1 labels"),
    ],
)
def test_what_no_viewer_could_show_is_refused(arguments: tuple, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Markup(*arguments)
