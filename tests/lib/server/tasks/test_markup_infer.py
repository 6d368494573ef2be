"""Methods that find points get a second model, and requests may say what is known of an image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medseg.cases import Case
from medseg.errors import UnusableInputError
from medseg.methods.base import Markup, Prediction
from medseg.methods.supervised.method import Supervised


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The cases that a method which finds one point was asked about."""
    asked: list[Case] = []

    def finish(self: Supervised, prediction: Prediction, case: Case) -> Prediction:
        asked.append(case)
        return replace(prediction, markups=(Markup("Fiducial", "apex", ((1.0, 2.0, 3.0),), ("apex",)),))

    monkeypatch.setattr(Supervised, "markups", True)
    monkeypatch.setattr(Supervised, "finish", finish)
    return asked


@pytest.fixture
def app(seen: list[Case], make_app: Callable[..., Any], trained_once: Path, tmp_path: Path) -> Any:
    first = make_app()
    shutil.copytree(trained_once, tmp_path / "model" / first.study.key, dirs_exist_ok=True)
    return make_app()


def test_points_come_as_a_detection_model_that_answers_with_slicer_markups(app: Any) -> None:
    models = app.info()["models"]
    assert {name: about["type"] for name, about in models.items()} == {
        "supervised": "segmentation",
        "supervised_markups": "detection",
    }
    assert list(app.info()["loop"]["methods"]) == ["supervised"]  # one model, offered twice

    reply = app.infer({"model": "supervised_markups", "image": "organ_003"})

    assert reply["file"].endswith(".json")
    [markup] = json.loads(Path(reply["file"]).read_text())["markups"]
    assert (markup["type"], markup["controlPoints"][0]["position"]) == ("Fiducial", [-1.0, -2.0, 3.0])


@pytest.mark.parametrize(
    ("warnings", "reason"), [(("no spine is seen", "turn it"), "no spine is seen; turn it"), ((), "found no points")]
)
def test_nothing_to_draw_is_told_and_no_empty_file(
    app: Any, monkeypatch: pytest.MonkeyPatch, warnings: tuple[str, ...], reason: str
) -> None:
    monkeypatch.setattr(Supervised, "finish", lambda self, prediction, case: replace(prediction, warnings=warnings))

    with pytest.raises(UnusableInputError, match=f"image organ_003 has no markups: .*{reason}"):
        app.infer({"model": "supervised_markups", "image": "organ_003"})


def test_domain_and_weak_labels_of_a_request_reach_the_method(app: Any, seen: list[Case]) -> None:
    app.infer({"model": "supervised", "image": "organ_003", "domain": "knee"})
    app.infer({"model": "supervised", "image": "organ_003", "weak": {"extent": {"1": 12.5}, "domain": "ankle"}})
    assert [case.domain for case in seen] == ["knee", "ankle"]
    assert seen[1].weak is not None
    assert seen[1].weak.extent == {"1": 12.5}
    with pytest.raises(UnusableInputError, match="key weak: weak label field 'extent': extent of region 1 is 400"):
        app.infer({"model": "supervised", "image": "organ_003", "weak": {"extent": {"1": 400}}})
