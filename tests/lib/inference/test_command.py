from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medseg.cases import Case
from medseg.errors import MedsegError, NotFoundError
from medseg.files import read_json
from medseg.inference.command import _case, predict_images
from medseg.inference.model_folder import save_model
from medseg.methods import method_class
from medseg.methods.base import TrainingSet
from medseg.methods.supervised.config import SupervisedConfig
from medseg.methods.supervised.method import Supervised
from medseg.transforms.io import read_image, read_mask
from medseg.weak import WeakLabels


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = SupervisedConfig.from_dict({"dimension": 2, "channels": 1, "patch": (32, 32), "width": 4, "amp": "off"})
    save_model(folder, Supervised(config, {"organ": 1}))
    return folder


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 40), dtype=np.uint8)).save(path)
    return path


def test_writes_mask_measurements_uncertainty_and_overlay(tmp_path: Path, model: Path) -> None:
    image = picture(tmp_path / "in" / "x.jpg")

    (line,) = predict_images(model, [image], tmp_path / "out", "cpu", uncertainty=True, overlay=True)

    out = tmp_path / "out"
    assert line == f"x.jpg -> {out / 'x.png'}"
    assert sorted(p.name for p in out.iterdir()) == ["x.json", "x.png", "x_overlay.png", "x_uncertainty.nii.gz"]
    mask, facts = read_mask(out / "x.png"), read_json(out / "x.json")
    assert mask.shape == (1, 40, 30)
    assert facts["voxels"] == {"organ": int((mask == 1).sum())}
    assert (facts["method"], facts["labels"], facts["image"]) == ("supervised", {"organ": 1}, "x.jpg")
    assert 0 < float(read_image(out / "x_uncertainty.nii.gz").max()) <= 1


def test_folder_means_all_images_in_it(tmp_path: Path, model: Path) -> None:
    for name in ("b.png", "a.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("x")

    lines = list(predict_images(model, [tmp_path / "in"], tmp_path / "out", "cpu"))

    assert [line.split(" ")[0] for line in lines] == ["a.png", "b.png"]


def test_mask_never_replaces_its_image(tmp_path: Path, model: Path) -> None:
    image = picture(tmp_path / "x.png")
    before = image.read_bytes()

    with pytest.raises(MedsegError, match=r"x\.png would replace the image itself"):
        list(predict_images(model, [image], tmp_path, "cpu"))

    assert image.read_bytes() == before


def test_missing_and_equal_names_are_told_before_anything_is_written(tmp_path: Path, model: Path) -> None:
    images = [picture(tmp_path / "one" / "x.png"), picture(tmp_path / "two" / "x.jpg")]

    with pytest.raises(MedsegError, match="two images are called 'x'"):
        list(predict_images(model, images, tmp_path / "out", "cpu"))
    with pytest.raises(NotFoundError, match=r"y\.png does not exist"):
        list(predict_images(model, [images[0], tmp_path / "y.png"], tmp_path / "out", "cpu"))
    assert not (tmp_path / "out").exists()


def test_damaged_image_is_named_at_the_end_and_stops_no_other(tmp_path: Path, model: Path) -> None:
    images = [picture(tmp_path / "in" / name) for name in ("a.png", "b.png", "c.png")]
    images[1].write_bytes(b"nothing")
    lines = predict_images(model, images, tmp_path / "out", "cpu")

    assert [next(lines).partition(" ")[0] for _ in images] == ["a.png", "b.png:", "c.png"]
    with pytest.raises(MedsegError, match=r"1 of 3 images have no prediction; the first, b\.png: .*damaged"):
        next(lines)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "a.png", "c.json", "c.png"]
    with pytest.raises(MedsegError, match=r"^b\.png cannot be read"):
        list(predict_images(model, images[1:2], tmp_path / "out", "cpu"))


def test_image_comes_with_the_name_of_its_data_set(tmp_path: Path) -> None:
    for file in ("heart/images/a.png", "knee/b.png"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(b"x")

    assert _case(tmp_path / "heart" / "images" / "a.png").dataset == "heart"
    assert _case(tmp_path / "knee" / "b.png").dataset == "knee"


def test_points_without_a_mask_are_drawn_and_nothing_is_no_picture(tmp_path: Path) -> None:
    kind = method_class("local_discrimination")
    image = picture(tmp_path / "in" / "images" / "x.png")
    case = Case("x", image, weak=WeakLabels(landmarks={"tip": (12.0, 20.0)}))
    given = {"patch": (32, 32), "width": 2, "embedding": 4, "regions": 2, "pyramid": (1,), "amp": "off"}
    config = kind.config_class.from_dict(given)
    for name, cases in (("marked", [case]), ("plain", [replace(case, weak=None)])):
        method = kind(kind.fit_config(config, cases), {})
        method.conclude(TrainingSet(tuple(cases), method.load))
        save_model(tmp_path / name, method)

        list(predict_images(tmp_path / name, [image], tmp_path / f"{name}_out", "cpu", overlay=True))

    drawn, plain = ({p.name for p in (tmp_path / f"{name}_out").iterdir()} for name in ("marked", "plain"))
    assert drawn == {"x.json", "x.mrk.json", "x_overlay.png"}
    assert plain == {"x.json"}
