"""Train, evaluate and predict on real left-atrium MR, small enough for every run of the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.cases import load_cases
from medseg.files import write_json
from medseg.inference.command import predict_images
from medseg.inference.evaluation import evaluate
from medseg.inference.predictor import Predictor
from medseg.training.command import TrainRequest, train_command
from medseg.transforms.io import read_image, read_mask

SETTINGS = {
    "iterations": 40,
    "scale": 0.25,
    "network": "vnet",
    "width": 8,
    "patch": "32,32,24",
    "amp": "off",
    "norm": "instance",
    "dropout": "0",
    "learning_rate": 0.05,
    "foreground_crops": 1.0,
    "validation_fraction": 0.0,
}


def test_left_atrium_is_learnt_evaluated_and_predicted(data_dir: Path, tmp_path: Path) -> None:
    cases = load_cases([data_dir / "left_atrium"])
    assert len(cases) == 80
    training = write_json(tmp_path / "training.json", [case.to_dict() for case in cases[:3]])
    unseen = cases[20]

    metrics = train_command(TrainRequest("supervised", (training,), tmp_path / "run", typed=SETTINGS, device="cpu"))
    predictor = Predictor.from_folder(tmp_path / "run")
    result = evaluate(predictor, [unseen])
    list(predict_images(tmp_path / "run", [unseen.image], tmp_path / "out", "cpu"))

    losses = [entry["supervised"] for entry in metrics["history"] if "supervised" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert result.cases[unseen.id]["dice"] > 0.4
    assert result.cases[unseen.id]["hd95_mm"] == pytest.approx(0.625 * result.cases[unseen.id]["hd95_voxel"])
    mask = read_mask(tmp_path / "out" / f"{unseen.id}.nii.gz")
    image, truth = read_image(unseen.image), read_mask(unseen.label)  # type: ignore[arg-type]
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    dice = 2 * float((mask * truth).sum()) / float(mask.sum() + truth.sum())
    assert dice == pytest.approx(result.cases[unseen.id]["dice"], abs=1e-6)
