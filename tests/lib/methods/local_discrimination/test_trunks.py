"""What holds for the network of every method that can be pretrained."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.inference.model_folder import save_model
from medseg.inference.predictor import Predictor
from medseg.methods import METHODS, method_class
from medseg.methods.base import Batch, StepOutput
from medseg.methods.local_discrimination.method import LocalDiscrimination
from medseg.phantoms.chest import make_chest
from medseg.phantoms.organs import make_organ
from medseg.phantoms.study import write_grid
from medseg.training.initial import load_initial
from medseg.training.run import TrainingJob, train
from medseg.training.settings import build_config
from medseg.transforms.io import read_image
from medseg.weak import WeakLabels

SMALL = {"width": 4, "embedding": 8, "regions": 4, "points": 32, "scale": 1.0, "amp": "off"}


def build(trunk: str, cases: list[Case], **settings: Any) -> LocalDiscrimination:
    torch.manual_seed(0)
    config = build_config("local_discrimination", "cpu", typed={**SMALL, "trunk": trunk, **settings})
    return LocalDiscrimination(LocalDiscrimination.fit_config(config, cases), {})


def volume(folder: Path, name: str = "a", number: int = 0) -> Case:
    """A chest in HU, with its regions."""
    chest = make_chest(number, (32, 32, 12))
    image, regions = (
        write_grid(folder / f"{name}_{key}.nii.gz", value, chest.affine)
        for key, value in (("image", chest.image), ("regions", chest.regions))
    )
    return Case(name, image, regions=regions)


def picture(folder: Path, name: str = "a", number: int = 0) -> Case:
    """A picture of as many rows as the grid of `seg4reg` has at a quarter of its size."""
    organ = make_organ(number, (64, 128), 1, (1.0, 1.0), 0.0)
    return Case(name, write_grid(folder / f"{name}.png", organ.image, organ.affine))


def joint(folder: Path, name: str = "a", spacing: tuple[float, ...] = (1.0, 1.0, 3.0)) -> Case:
    """A volume with its mask, in slices along its last axis, which is three times as coarse."""
    organ = make_organ(0, (24, 32, 40), 1, spacing, 0.0)
    image, mask = (
        write_grid(folder / f"{name}_{key}.nii.gz", value, organ.affine)
        for key, value in (("image", organ.image), ("mask", organ.mask))
    )
    return Case(name, image, label=mask, names={1: "lesion"})


def sagittal(folder: Path, name: str = "a") -> Case:
    """The same in sagittal slices."""
    return joint(folder, name, (3.0, 1.0, 1.0))


def drawn(folder: Path, name: str = "a") -> Case:
    """A picture with its mask."""
    organ = make_organ(0, (48, 40), 1, (1.0, 1.0), 0.0)
    image, mask = (
        write_grid(folder / f"{name}_{key}.png", value, organ.affine)
        for key, value in (("image", organ.image), ("mask", organ.mask))
    )
    return Case(name, image, label=mask, names={1: "lesion"})


@pytest.mark.parametrize(
    ("trunk", "draw", "settings"),
    [
        ("caml", picture, {}),
        ("caml", volume, {}),
        ("seg4reg", picture, {"grid": (64, 128)}),
        ("dram", volume, {"scale": 1.0, "margin": 100}),
        ("multidomain", joint, {"patch": (16, 16)}),
        ("multidomain", sagittal, {"patch": (16, 16)}),
        ("multidomain", drawn, {"patch": (16, 16)}),
    ],
)
def test_a_network_is_pretrained_on_what_it_will_see(
    trunk: str, draw: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    case = draw(tmp_path)
    kind = method_class(trunk)
    other = kind(kind.fit_config(kind.config_class.from_dict(settings), [case]), {"lesion": 1})

    seen = build(trunk, [case]).load(case)

    expected = other.load(case)["image"].as_tensor()
    assert torch.allclose(seen["image"].as_tensor(), expected, atol=1e-6)
    assert seen["inside"].shape == expected.shape[1:]
    assert float(expected.std()) > 0.05


def test_colours_become_the_contrasts_of_their_grey_values_and_do_not_shift_against_each_other(tmp_path: Path) -> None:
    grey = make_organ(0, (64, 128), 1, (1.0, 1.0), 0.0)
    colours = np.stack([0.5 * grey.image, grey.image, grey.image], axis=-1)
    Image.fromarray(np.rint(colours).astype(np.uint8).transpose(1, 0, 2)).save(tmp_path / "a.png")
    case = Case("a", tmp_path / "a.png")
    method = build("seg4reg", [case], zoom=(1.0, 1.0), patch=(64, 128), appearance=1.0)

    loaded = method.load(case)
    drawn = [method.sample(loaded, "images", torch.Generator().manual_seed(seed)) for seed in range(40)]

    assert method.config.channels == 3
    assert loaded["image"].shape == (2, 64, 128)
    assert all(not torch.equal(one["view_a"][0], one["view_a"][1]) for one in drawn)  # no view turned grey


def test_marked_images_pretrain_another_network_and_landmarks_that_were_asked_for_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [replace(picture(tmp_path, name), weak=WeakLabels(landmarks={"tip": (20.0, 30.0)})) for name in "ab"]

    with caplog.at_level(logging.INFO):
        method = build("seg4reg", cases)

    assert (method.config.landmarks, method.config.templates, method.has_landmarks) == ((), 0, False)
    assert "landmarks of 2 images are not looked at: trunk = seg4reg finds none" in caplog.text
    assert [case.id for case in method.streams(cases)[0].cases] == ["a", "b"]
    network = method.network.eval()
    values = method.evaluate(method.predict(method.load(cases[0])), cases[0], None)
    assert 0 <= values["retrieval"] <= 1
    assert method.qualities({"a": values}) == {"a": values["retrieval"]}
    assert not any(name.startswith("bank.") for name in network.state_dict())
    for typed in ({"templates": 1}, {"landmarks": "tip"}, {"shapes": "x"}):
        with pytest.raises(MedsegError, match="shapes and landmarks need trunk = caml"):
            build("seg4reg", cases, **typed)


@pytest.mark.parametrize("trunk", ["caml", "dram", "seg4reg", "multidomain"])
def test_only_those_whose_network_was_pretrained_take_its_shape(trunk: str) -> None:
    config = {"trunk": trunk, "width": 12, "norm": "instance", "embedding": 8, "regions": 5}
    source = build_config("local_discrimination", "cpu", typed=config).to_dict()

    taken = {name: method_class(name).adopt(source) for name in METHODS}

    takers = {
        "caml": {
            "caml": {"width": 12, "norm": "instance"},
            "supervised": {"width": 12, "norm": "instance", "network": "vnet"},
        },
        "dram": {"dram": {"width": 12}},
        "seg4reg": {"seg4reg": {"s_widths": (12, 24, 36, 48, 60)}},
        "multidomain": {"multidomain": {"network": "unet", "width": 12}},
    }
    assert taken == {**{name: {} for name in METHODS}, **takers[trunk], "local_discrimination": config}


@pytest.mark.parametrize("trunk", ["dram", "multidomain"])
def test_pretraining_goes_on_with_the_same_network(trunk: str, tmp_path: Path) -> None:
    cases = [volume(tmp_path)]
    save_model(tmp_path / "pre", build(trunk, cases, regions=6))

    typed = {"init": str(tmp_path / "pre"), "patch": "16,16,8"}
    config = LocalDiscrimination.fit_config(build_config("local_discrimination", "cpu", typed=typed), cases)
    network = LocalDiscrimination(config, {}).network
    account = load_initial(network, tmp_path / "pre")

    assert config.trunk == trunk
    assert set(account.loaded) == set(network.state_dict())


def test_cuts_of_the_multi_domain_network_are_those_of_each_image(tmp_path: Path) -> None:
    axial, turned = joint(tmp_path, "a"), sagittal(tmp_path, "b")
    sizes = {"patch": "32,64,16"}

    first, second, plain = (
        build("multidomain", [axial], **sizes),
        build("multidomain", [turned], **sizes),
        build("caml", [turned], **sizes),
    )

    assert (first.config.patch, second.config.patch, plain.config.patch) == ((24, 32, 16), (32, 40, 16), (24, 32, 16))
    assert first.load(axial)["image"].shape == (1, 24, 32, 40)
    assert first.load(turned)["image"].shape == second.load(turned)["image"].shape == (1, 32, 40, 24)
    assert plain.load(turned)["image"].shape == (1, 24, 32, 40)
    again = second.fit_config(second.config, [turned])
    assert again == second.config
    assert np.allclose(second.load(turned)["image"].pixdim, (1.0, 1.0, 3.0))


def test_models_of_two_trunks_do_not_compete() -> None:
    assert LocalDiscrimination.incomparable({"trunk": "dram"}, {"trunk": "dram", "width": 8}) == ""
    assert LocalDiscrimination.incomparable({"trunk": "dram"}, {}) == "the trunk changed from caml to dram"


def test_the_first_model_with_masks_does_not_compete_with_one_without() -> None:
    assert LocalDiscrimination.incomparable({"shapes": "a"}, {"shapes": None}) == "masks of shapes are new"
    assert LocalDiscrimination.incomparable({"shapes": "a"}, {"shapes": "b"}) == ""
    assert LocalDiscrimination.incomparable({}, {"shapes": "b"}) == "there are no masks of shapes any more"
    assert LocalDiscrimination.incomparable({"shapes": "a", "templates": 1}, {"templates": 2}) == "", "landmarks are"


@pytest.mark.parametrize(
    ("trunk", "draw", "patch"),
    [
        ("caml", picture, "32,32"),
        ("seg4reg", picture, "64,64"),
        ("dram", volume, "16,16,8"),
        ("multidomain", sagittal, "32,32,4"),
        ("multidomain", drawn, "32,32"),
    ],
)
def test_a_stopped_pretraining_ends_with_the_same_model_which_serves(
    trunk: str, draw: Any, patch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = tuple(draw(tmp_path, name) for name in "ab")
    typed = {**SMALL, "trunk": trunk, "patch": patch, "iterations": 2, "epoch_iterations": 1, "warmup": 0.0}
    config = build_config("local_discrimination", "cpu", typed={**typed, "image_batch": 2, "learning_rate": 0.1})

    def run(out: str, resume: bool = False) -> dict[str, torch.Tensor]:
        train(TrainingJob("local_discrimination", config, {}, cases, (), tmp_path / out, "cpu", resume))
        return load_file(tmp_path / out / "model.safetensors")

    step = LocalDiscrimination.training_step

    def stopped(self: LocalDiscrimination, batch: Batch, iteration: int) -> StepOutput:
        if iteration == 1:
            raise KeyboardInterrupt
        return step(self, batch, iteration)

    calm = run("calm")
    with monkeypatch.context() as patched:
        patched.setattr(LocalDiscrimination, "training_step", stopped)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - ignite may pass it on or stop
            run("killed")
    resumed = run("killed", resume=True)

    assert [name for name in calm if not torch.equal(calm[name], resumed[name])] == []
    torch.manual_seed(config.seed)
    fresh = LocalDiscrimination(LocalDiscrimination.fit_config(config, cases), {})
    moved = [f"trunk.{name}.weight" for name in fresh.lengths]
    assert len(moved) >= 14
    for name in moved:
        assert torch.allclose(calm[name].norm(), fresh.network.state_dict()[name].norm(), rtol=1e-4)
        assert not torch.allclose(calm[name], fresh.network.state_dict()[name], atol=1e-4)
    predictor = Predictor.from_folder(tmp_path / "calm")
    assert 0 <= predictor.predict(cases[0]).measurements["retrieval"].value <= 100
    assert len(predictor.score(cases[0]).features) == 8 * (64 if fresh.dimension == 2 else 27)
    layers = predictor.layers(cases[0])
    assert {tuple(plane.shape) for plane in layers.values()} == {(1, *read_image(cases[0].image).shape[1:])}
