"""Inference with clicks, as the viewers ask for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from medseg.errors import UnusableInputError
from medseg.methods.base import Measurement, Prediction
from medseg.server.app import MedsegApp
from medseg.server.tasks.clicks import clicks_of, corrected
from medseg.transforms.io import read_mask

LABELS = {"liver": 1, "left lung": 2}


def predicted(app: MedsegApp, model: str, **params: object) -> torch.Tensor:
    result = app.infer({"model": model, "image": "organ_004", "result_extension": ".nii.gz", **params})
    file = Path(result["file"])
    mask = read_mask(file)
    file.unlink()
    return mask.as_tensor()[0]


def test_slicer_and_ohif_send_clicks_in_their_ways() -> None:
    edit = {"liver": [[1, 2, 3]], "left lung": [], "background": [[4.2, 5, 6]], "label": "liver", "device": ["cpu"]}
    grow = {"label": "left lung", "foreground": [[1, 1, 1]], "background": [[2, 2, 2], [3, 3, 3]]}

    assert clicks_of(edit, LABELS) == ({1: [[1, 2, 3]], 0: [[4, 5, 6]]}, 1)
    assert clicks_of(grow, LABELS) == ({2: [[1, 1, 1]], 0: [[2, 2, 2], [3, 3, 3]]}, 2)
    assert clicks_of({"model": "x"}, LABELS) == ({}, None)
    assert clicks_of({"foreground": [[1, 1, 1]], "background": []}, {"cyst": 3}) == ({3: [[1, 1, 1]]}, 3)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"label": "spleen"}, "'spleen' is not one of"),
        ({"liver": ["here"]}, "no lists of voxel indices"),
        ({"foreground": [[1, 1, 1]], "background": []}, '"label" with one of liver, left lung'),
        ({"foreground": [], "background": [[1, 1, 1]], "label": None}, '"label" with one of liver, left lung'),
    ],
)
def test_wrong_clicks_are_named(request_: dict, message: str) -> None:
    with pytest.raises(UnusableInputError, match=message):
        clicks_of(request_, LABELS)


def test_both_models_are_offered_for_clicks(trained_app: MedsegApp) -> None:
    models = trained_app.info()["models"]

    assert {name: models[name]["type"] for name in models} == {
        "supervised": "segmentation",
        "supervised_deepedit": "deepedit",
        "supervised_deepgrow": "deepgrow",
    }
    assert models["supervised_deepedit"]["labels"] == models["supervised"]["labels"]


def test_without_clicks_the_answer_is_the_models_own(trained_app: MedsegApp) -> None:
    plain = predicted(trained_app, "supervised")

    assert torch.equal(predicted(trained_app, "supervised_deepedit"), plain)


def test_clicks_are_obeyed_and_the_prediction_is_computed_once(trained_app: MedsegApp) -> None:
    task = trained_app._infers["supervised_deepedit"]
    name = next(iter(trained_app.study.labels))
    plain = predicted(trained_app, "supervised_deepedit")
    task.cache.get("cpu").predictor.predict = None  # type: ignore[method-assign]

    inside, outside = (1, 1, 1), tuple(int(i) for i in (plain > 0).nonzero().float().mean(0).round().int())
    first = predicted(trained_app, "supervised_deepedit", **{name: [list(inside)]})
    second = predicted(trained_app, "supervised_deepedit", **{name: [list(inside)], "background": [list(outside)]})

    assert first[inside] == second[inside] == 1
    assert second[outside] == 0


def test_clicks_change_what_the_annotator_sees_and_keep_the_rest() -> None:
    """A method that decides lungs before lesions, as dRAM, and tells the domain: argmax is background everywhere."""
    prob = torch.tensor([0.4, 0.35, 0.25]).reshape(3, 1, 1).repeat(1, 24, 24)
    shown = torch.ones(1, 24, 24, dtype=torch.uint8)
    shown[:, 20:] = 2
    told = {"warnings": ("look twice",), "labels": {"lung": 1}, "facts": {"domain": "knee"}}
    prediction = Prediction(MetaTensor(prob), mask=MetaTensor(shown), measurements={"x": Measurement(1, "%")}, **told)
    image = MetaTensor(torch.zeros(1, 24, 24))

    background = corrected(prediction, image, {0: [[2, 2]]})
    held = corrected(prediction, image, {1: [[2, 2]]})

    assert background.mask is not None
    assert held.mask is not None
    assert background.mask[0, 2, 2] == 0
    assert torch.equal(background.mask[:, 16:].as_tensor(), shown[:, 16:])
    assert 0 < int((background.mask == 0).sum()) < 200
    assert torch.equal(held.mask.as_tensor(), shown)
    assert (background.warnings, background.labels, background.facts) == tuple(told.values())
    assert background.measurements == {}  # they were of the mask before


def test_deepgrow_answers_with_one_label(trained_app: MedsegApp) -> None:
    name = next(iter(trained_app.study.labels))

    mask = predicted(trained_app, "supervised_deepgrow", label=name, foreground=[[2, 2, 2]], background=[])

    assert mask[2, 2, 2] == 1
    assert mask.unique().tolist() == [0, 1]


def test_deepgrow_obeys_clicks_on_the_second_label_as_the_web_viewer_sends_them(
    trained_app: MedsegApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two labels; the viewer paints whatever is not 0 as the label that was clicked."""
    prob = torch.full((3, 24, 24, 16), 0.05)
    prob[1, :12], prob[2, 18:], prob[0, 12:18] = 0.9, 0.9, 0.9
    shown = Prediction(MetaTensor(prob), mask=MetaTensor(prob.argmax(dim=0, keepdim=True).to(torch.uint8)))
    task = trained_app._infers["supervised_deepgrow"]
    monkeypatch.setattr(task, "_base", lambda *_: shown)
    monkeypatch.setattr(task.cache.get("cpu").predictor.method, "labels", LABELS)
    sent = {"foreground": [[14, 8, 8]], "background": [], "result_dtype": "uint8", "result_compress": False}

    mask = predicted(trained_app, "supervised_deepgrow", **sent, label="left lung")

    assert mask[14, 8, 8] == mask[20, 8, 8] == 1
    assert mask[2, 8, 8] == 0
    with pytest.raises(UnusableInputError, match="do not tell of which label"):
        predicted(trained_app, "supervised_deepgrow", **sent)
