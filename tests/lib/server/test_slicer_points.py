from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import UnusableInputError
from medseg.inference.markups import markups_json
from medseg.methods.base import Markup
from medseg.server.datastore import MedsegDatastore
from medseg.server.slicer_points import points_of, take_markups

POINTS = {2: ((12.5, 30.25), (3.0, 4.0)), 3: ((-12.5, 40.25, -7.0), (1.0, 2.0, 3.0))}


def content(axes: int) -> dict[str, Any]:
    return markups_json([Markup("Fiducial", "landmarks", POINTS[axes], ("apex", "base"))])


@pytest.mark.parametrize("axes", [2, 3])
def test_what_an_inference_answers_comes_back_to_the_same_place(axes: int) -> None:
    found = points_of(content(axes), "x", picture=axes == 2)

    assert found == {"apex": list(POINTS[axes][0]), "base": list(POINTS[axes][1])}


def test_slicer_may_save_in_ras_and_points_that_are_not_placed_are_left_out() -> None:
    given = content(3)
    (markup,) = given["markups"]
    markup["coordinateSystem"] = "RAS"
    for point in markup["controlPoints"]:
        point["position"] = [-point["position"][0], -point["position"][1], point["position"][2]]
    markup["controlPoints"].append({"label": "later", "position": [0, 0, 0], "positionStatus": "undefined"})

    assert points_of(given, "x", picture=False) == {"apex": [-12.5, 40.25, -7.0], "base": [1.0, 2.0, 3.0]}


def test_they_become_landmarks_of_the_image(study: Path) -> None:
    datastore = MedsegDatastore(study)

    datastore.update_image_info("a", {"weak": {"markups": content(3), "by": "ann"}, "patient": "P1"})

    info = datastore.get_image_info("a")
    assert info["weak"]["landmarks"] == {"apex": [-12.5, 40.25, -7.0], "base": [1.0, 2.0, 3.0]}
    assert (info["weak"]["landmark_unit"], info["weak"]["by"], info["patient"]) == ("mm", "ann", "P1")
    assert "markups" not in info["weak"]


def changed(**values: Any) -> dict[str, Any]:
    given = copy.deepcopy(content(3))
    given["markups"][0].update(values)
    return given


@pytest.mark.parametrize(
    ("weak", "sentence"),
    [
        ({"markups": {"x": 1}}, "image a: markups are not the content of a .mrk.json"),
        ({"markups": changed(coordinateSystem="scanner")}, "coordinateSystem 'scanner'"),
        ({"markups": changed(controlPoints=[])}, "hold no placed fiducial"),
        ({"markups": changed(type="Curve")}, "hold no placed fiducial"),
        ({"markups": changed(controlPoints=2 * content(3)["markups"][0]["controlPoints"])}, "'apex' stands twice"),
        ({"markups": content(3), "landmarks": {"a": [1, 2, 3]}}, "give one of them"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(study: Path, weak: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnusableInputError, match=sentence):
        take_markups({"weak": weak}, "image a", lambda: study / "a.nii.gz")
