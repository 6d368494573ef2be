"""Seg4Reg+ in the app: pictures without masks, angles that a reader enters, a model, a mask, angles and lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from medseg.cases import Case
from medseg.errors import UnusableInputError
from medseg.methods.base import Prediction
from medseg.methods.seg4reg.method import Seg4Reg
from medseg.methods.seg4reg.targets import VERTEBRA, draw_spine
from medseg.phantoms.spines import make_spine
from medseg.server.app import MedsegApp
from medseg.transforms.io import read_mask

SHAPE = (192, 512)
CONF = {
    "models": "seg4reg",
    "labels": "vertebra",
    "set": "iterations=2,grid=64,128,s_widths=8,8,8,8,8,r_width=16,batch=2,amp=off",
    "device": "cpu",
    "tracking_uri": "off",
    "validation": "s3",
}


@pytest.fixture
def app(tmp_path: Path) -> Any:
    """Five radiographs; angles of the first two and of the one that validates."""
    (tmp_path / "study").mkdir()
    for seed in range(5):
        Image.fromarray(make_spine(seed, SHAPE).image.T).save(tmp_path / "study" / f"s{seed}.png")
    app = MedsegApp(str(tmp_path / "app"), str(tmp_path / "study"), {**CONF, "model_dir": str(tmp_path / "model")})
    for seed in (0, 1, 3):
        names = ("max", "second", "third")
        angles = dict(zip(names, make_spine(seed, SHAPE).angles, strict=True))
        app.datastore().update_image_info(f"s{seed}", {"weak": {"angles": angles, "source": "reader"}})
    return app


def test_from_angles_to_a_model_and_its_answers(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decision = app.train({"model": "seg4reg"})["decision"]
    assert decision["published"]
    assert app.info()["models"]["seg4reg"]["dimension"] == 2

    reply = app.infer({"model": "seg4reg", "image": "s2"})
    assert read_mask(Path(reply["file"])).shape == (1, *SHAPE)
    params = json.loads(json.dumps(reply["params"]))
    assert {"cobb_image_max", "cobb_mask_third", "vertebrae", "disagreement"} <= set(params["measurements"])
    assert params["cobb_convention"].startswith("AASCE 2019")
    assert params["label_names"] == {"vertebra": 1}

    app.scoring({"method": "seg4reg"})
    assert set(app.study.scores("seg4reg").all()) == {f"s{seed}" for seed in range(5)}
    order = [app.next_sample({"strategy": "seg4reg", "client_id": str(k)})["id"] for k in range(5)]
    assert set(order[:2]) == {"s2", "s4"}  # the others' angles are known

    with pytest.raises(UnusableInputError, match=r"has no markups: .*no angles from the mask"):
        app.infer({"model": "seg4reg_markups", "image": "s2"})
    monkeypatch.setattr(Seg4Reg, "finish", finish_with_truth(Seg4Reg.finish))
    drawn = app.infer({"model": "seg4reg_markups", "image": "s2"})
    markups = json.loads(Path(drawn["file"]).read_text())["markups"]
    assert [m["type"] for m in markups[:4]] == ["Fiducial", "Line", "Line", "Angle"]
    assert markups[3]["measurements"][0]["value"] == pytest.approx(make_spine(2, SHAPE).angles[0], abs=3)


def finish_with_truth(original: Any) -> Any:
    """`Seg4Reg.finish` of the true mask: two iterations teach no spine."""

    def finish(self: Seg4Reg, prediction: Prediction, case: Case) -> Prediction:
        truth = draw_spine(make_spine(int(case.id[1:]), SHAPE).corners, SHAPE) == VERTEBRA
        assert prediction.mask is not None
        mask = MetaTensor(torch.from_numpy(truth.astype(np.uint8))[None], affine=prediction.mask.affine)
        found: Prediction = original(self, replace(prediction, mask=mask), case)
        return found

    return finish
