"""From no label at all to a first model: pretrain, describe, choose, mark one image, start another method from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medseg.errors import ConflictError, MedsegError
from medseg.files import read_json
from medseg.methods.local_discrimination.points import to_world
from medseg.phantoms.chest import make_chest
from medseg.phantoms.study import StudyOptions, write_grid, write_study
from medseg.server.app import MedsegApp
from medseg.transforms.io import read_image, write_volume

METHOD = "local_discrimination"
CONF = {
    "models": f"{METHOD},supervised",
    "init": f"champion:{METHOD}",
    "set": "iterations=3,epoch_iterations=3,patch=24,24,16,amp=off",
    f"{METHOD}.width": "4",
    f"{METHOD}.embedding": "8",
    f"{METHOD}.pyramid": "1",
    f"{METHOD}.heat_iterations": "2",
    "device": "cpu",
    "tracking_uri": "off",
}


@pytest.fixture
def app(tmp_path: Path) -> MedsegApp:
    """Five volumes, none with a label."""
    study = write_study(tmp_path / "study", count=5, labelled=0, options=StudyOptions(shape=(24, 24, 16)))
    return MedsegApp(str(tmp_path / "app"), str(study), {**CONF, "model_dir": str(tmp_path / "model")})


def train(app: Any, method: str) -> dict[str, Any]:
    decision: dict[str, Any] = app.train({"model": method})["decision"]
    return decision


def save_mask(app: Any, image: str, tmp_path: Path) -> None:
    mask = torch.zeros(1, 24, 24, 16, dtype=torch.uint8)
    mask[:, 6:14, 6:14, 4:10] = 1
    read = read_image(app.study.image(image))
    read.set_array(mask)
    path = write_volume(tmp_path / f"{image}-mask.nii.gz", read)
    app.datastore().save_label(image, str(path), "final", {"label_info": [{"name": "atrium", "idx": 1}]})
    app.on_save_label(image, image)


def test_from_no_label_to_a_first_model(app: Any, tmp_path: Path) -> None:
    first = train(app, METHOD)
    scored = app.scoring({"method": METHOD})
    chosen = app.next_sample({"strategy": "typicality", "client_id": "ann"})
    save_mask(app, chosen["id"], tmp_path)
    again = app.scoring({"method": METHOD, "force": True})
    second = train(app, "supervised")

    assert first["published"]
    assert first["labelled"] == 0
    assert (scored["scored"], scored["failed"]) == (5, 0)
    assert "typical" in chosen["why"]
    assert again["scored"] == 5  # the labelled one is described as well
    assert app.study.scores(METHOD).all()[chosen["id"]].features
    assert (second["published"], second["labelled"]) == (True, 1)
    (run,) = (app.study.folder / "supervised" / "runs").iterdir()
    config = read_json(run / "config.json")["config"]
    assert (config["width"], config["norm"], config["network"]) == (4, "instance", "vnet")


def test_one_marked_image_is_a_template_for_all_others(app: Any) -> None:
    image = read_image(app.study.image("organ_000"))
    point = to_world(torch.tensor([[12.0, 11.0, 7.0]]), image)[0].tolist()
    app.datastore().update_image_info("organ_000", {"weak": {"landmarks": {"tip": point}, "landmark_unit": "mm"}})

    train(app, METHOD)
    reply = app.infer({"model": f"{METHOD}_markups", "image": "organ_000"})

    (run,) = (app.study.folder / METHOD / "runs").iterdir()
    assert len(read_json(run / "cases.json")) == 5
    assert read_json(run / "config.json")["config"]["templates"] == 1
    (markup,) = read_json(Path(reply["file"]))["markups"]
    (found,) = markup["controlPoints"]
    assert found["label"] == "tip"
    assert markup["coordinateSystem"] == "LPS"
    expected = [-point[0], -point[1], point[2]]
    assert torch.dist(torch.tensor(found["position"]), torch.tensor(expected)) < 3.0  # mm, of itself
    confirmed = {"weak": {"markups": read_json(Path(reply["file"])), "source": "reader"}}
    app.datastore().update_image_info("organ_001", confirmed)
    position = torch.tensor(app.study.case("organ_001").weak.landmarks["tip"])
    assert torch.allclose(position, torch.tensor(found["position"]) * torch.tensor([-1.0, -1.0, 1.0]))


def test_a_confirmed_image_is_one_more_template_without_training(app: Any) -> None:
    def mark(name: str) -> None:
        point = to_world(torch.tensor([[12.0, 11.0, 7.0]]), read_image(app.study.image(name)))[0].tolist()
        app.datastore().update_image_info(name, {"weak": {"landmarks": {"tip": point}, "landmark_unit": "mm"}})

    def weights() -> dict[str, torch.Tensor]:
        return load_file(app.study.registry.champion(METHOD).folder / "model.safetensors")

    with pytest.raises(ConflictError, match="no model to refresh"):
        app._trainers[METHOD].check({"refresh": True})
    train(app, METHOD)
    before = weights()
    mark("organ_000")
    decision = app.train({"model": METHOD, "refresh": True})["decision"]
    after = weights()

    assert decision["published"]
    assert "bank.known" not in before
    assert bool(after["bank.known"].any())
    assert all(torch.allclose(after[key], value) for key, value in before.items() if key.startswith("trunk."))
    asked = app._trainers[METHOD].check({"refresh": True, "heat_iterations": "0", "iterations": "9"}).config
    assert (asked.heat_iterations, asked.iterations, asked.learning_rate) == (0, 1, 0.0)
    with pytest.raises(MedsegError, match="supervised keeps nothing that a refresh could renew"):
        app._trainers["supervised"].check({"refresh": True})


def test_another_method_starts_from_its_own_network_pretrained(tmp_path: Path) -> None:
    for number in range(3):
        chest = make_chest(number, (32, 32, 12))
        write_grid(tmp_path / "study" / f"chest_{number}.nii.gz", chest.image, chest.affine)
    conf = {
        **{key: value for key, value in CONF.items() if key not in ("models", f"{METHOD}.pyramid")},
        "models": f"{METHOD},dram",
        "set": "iterations=2,epoch_iterations=2,amp=off",
        f"{METHOD}.trunk": "dram",
        f"{METHOD}.patch": "16,16,8",
        "dram.learning_rate": "0",
        "model_dir": str(tmp_path / "model"),
    }
    app = MedsegApp(str(tmp_path / "app"), str(tmp_path / "study"), conf)
    extents = dict.fromkeys(("left_lower", "left_upper", "right_lower", "right_upper"), 20.0)
    app.datastore().update_image_info("chest_0", {"weak": {"extent": extents}})

    first, second = train(app, METHOD), train(app, "dram")
    given, own = (
        load_file(app.study.registry.champion(name).folder / "model.safetensors") for name in (METHOD, "dram")
    )
    other: Any = app.train({"model": METHOD, "trunk": "caml", "patch": "24,24,16"})["decision"]

    assert (first["published"], second["published"]) == (True, True)
    levels = [name for name in own if name.startswith(("backbone.down.", "backbone.up."))]
    assert len(levels) > 40
    assert all(torch.equal(own[name], given[name.replace("backbone.", "trunk.", 1)]) for name in levels)
    assert other["published"]
    assert "the trunk changed from dram to caml, not compared with version 1" in other["reason"]
    with pytest.raises(MedsegError, match="trunk = 'drma' has no network"):
        app._trainers[METHOD].check({"trunk": "drma"})
