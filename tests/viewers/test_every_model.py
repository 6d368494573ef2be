"""Slicer's requests to a small champion of every method, over one folder of volumes and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import Case, load_cases
from medseg.inference.model_folder import save_model
from medseg.methods import METHODS, method_class
from medseg.methods.base import TrainingSet
from medseg.phantoms.chest import LABELS, make_chest
from medseg.phantoms.landmarks import write_landmark_study
from medseg.phantoms.spines import make_spine
from medseg.phantoms.study import write_grid
from medseg.server.launch import running_server
from medseg.training.registry import ModelRegistry
from medseg.training.study import study_key
from medseg.transforms.io import read_image, read_mask, write_volume

pytestmark = [pytest.mark.server, pytest.mark.slow]

CHESTS, SHAPE = 3, (32, 32, 16)
TINY: dict[str, dict[str, Any]] = {
    "supervised": {"patch": (16, 16, 16), "width": 4},
    "caml": {"patch": (16, 16, 16), "width": 8, "occ_rows": 64},
    "dram": {"width": 4, "scale": 1.0},
    "multidomain": {"patch": (16, 16), "width": 4, "norm_batches": 2},
    "seg4reg": {"grid": (64, 128), "s_widths": (8, 12, 16, 16, 16), "r_width": 16},
    "local_discrimination": {
        "patch": (48, 48),
        "width": 4,
        "embedding": 8,
        "regions": 4,
        "points": 16,
        "heat_iterations": 2,
    },
}
"""Settings that make each method small."""


@dataclass(frozen=True)
class Hospital:
    """A running server.

    Attributes:
        url: of the server.
        studies: its folder.
        images: method -> id of an image of its kind.
    """

    url: str
    studies: Path
    images: dict[str, str]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Hospital]:
    """Chests (volumes) and spines and landmarks (pictures) in one folder, and a model of every method that saw few."""
    folder = tmp_path_factory.mktemp("hospital")
    studies = folder / "study"
    for seed in range(CHESTS):
        chest = make_chest(seed, SHAPE)
        write_grid(studies / f"chest_{seed}.nii.gz", chest.image, chest.affine)
        write_grid(studies / "labels" / "regions" / f"chest_{seed}.nii.gz", chest.regions, chest.affine)
        if seed < CHESTS - 1:
            write_grid(studies / "labels" / "final" / f"chest_{seed}.nii.gz", chest.mask, chest.affine)
    write_grid(studies / "spine.png", make_spine(0, (80, 192)).image, np.eye(3))
    marked = load_cases(write_landmark_study(folder / "marked", 2, (80, 72), 3))
    picture = studies / f"{marked[0].id}.png"
    picture.write_bytes(Path(marked[0].image).read_bytes())
    (studies / "labels.json").write_text(json.dumps(LABELS))
    registry = ModelRegistry(folder / "model", study=study_key(str(studies)), tracking_uri="off")
    chests = [
        Case(f"chest_{n}", studies / f"chest_{n}.nii.gz", studies / "labels" / "final" / f"chest_{n}.nii.gz")
        for n in range(CHESTS - 1)
    ]
    learnt = {"seg4reg": [], "local_discrimination": marked}
    for name in METHODS:
        publish(registry, name, learnt.get(name, chests), folder / "runs" / name)
    conf = {"models": ",".join(METHODS), "model_dir": str(folder / "model"), "device": "cpu", "tracking_uri": "off"}
    conf |= {"auto_scoring": "false"}
    images = dict.fromkeys(METHODS, f"chest_{CHESTS - 1}")
    images |= {"seg4reg": "spine", "local_discrimination": marked[0].id}
    with running_server(root / "apps" / "medseg", str(studies), conf, folder / "server.log") as server:
        yield Hospital(server.url, studies, images)


def publish(registry: ModelRegistry, name: str, cases: list[Case], run: Path) -> None:
    """A champion with the weights it began with; landmarks are remembered from the cases."""
    torch.manual_seed(0)
    kind = method_class(name)
    config = kind.fit_config(kind.config_class.from_dict({"amp": "off", **TINY[name]}), cases)
    method = kind(config, {"vertebra": 1} if name == "seg4reg" else kind.fit_labels(LABELS))
    if name == "local_discrimination":
        method.streams(cases)
        method.conclude(TrainingSet(tuple(cases), method.load))
    save_model(run, method)
    registry.promote(name, registry.publish(name, run, {"quality": 0.1}))


def test_every_model_answers_slicer_in_its_kind(hospital: Hospital, slicer: Any, tmp_path: Path) -> None:
    client = slicer(hospital.url, tmp_path)
    models = client.info()["models"]
    with_points = [name for name in METHODS if method_class(name).markups]
    by_clicks = [f"{name}_{kind}" for name in METHODS if name not in with_points for kind in ("deepedit", "deepgrow")]
    assert set(models) == {*METHODS, *(f"{name}_markups" for name in with_points), *by_clicks}
    assert {models[f"{name}_markups"]["type"] for name in with_points} == {"detection"}

    drawn = {}
    for model, about in models.items():
        image = hospital.images[model.removesuffix("_deepedit").removesuffix("_deepgrow").removesuffix("_markups")]
        source = read_image(next(hospital.studies.glob(f"{image}.*")))
        click, labels = [5, 6, 7][: source.ndim - 1], list(about["labels"])
        params: dict[str, Any] = {"result_extension": ".nrrd", "result_dtype": "uint8", "largest_cc": False}
        if about["type"] == "deepedit":
            params |= {**{label: [] for label in labels}, labels[0]: [click], "label": labels[0]}
        elif about["type"] == "deepgrow":
            params |= {"label": labels[0], "foreground": [click], "background": []}
        if model == "seg4reg_markups":  # its weights are those it began with: it sees no spine, and says so
            with pytest.raises(Exception, match="image spine has no markups: no angles"):
                client.infer(model, image, params)
            continue
        file, reply = client.infer(model, image, params)
        if file.endswith(".json"):  # landmarks, of whichever of the two models was asked
            drawn[model] = json.loads(Path(file).read_text())
            continue
        mask = read_mask(Path(file))
        assert tuple(mask.shape[1:]) == tuple(source.shape[1:]), model
        assert set(np.unique(mask.numpy())) <= {0, *about["labels"].values()}, model
        assert set(reply["label_names"]) <= set(labels), model
        if about["type"] in ("deepedit", "deepgrow"):
            assert mask[(0, *click)] == 1, model

    assert set(drawn) == {"local_discrimination_markups", "local_discrimination"}
    for content in drawn.values():
        slicer.check_markups(content)
    assert drawn["local_discrimination"] == drawn["local_discrimination_markups"]
    [points] = drawn["local_discrimination_markups"]["markups"]
    assert (points["type"], len(points["controlPoints"])) == ("Fiducial", 3)


def test_labels_of_volumes_and_pictures_are_submitted(hospital: Hospital, slicer: Any, tmp_path: Path) -> None:
    client = slicer(hospital.url, tmp_path)
    chest = make_chest(CHESTS - 1, SHAPE)
    segments = [{"name": name, "idx": number} for name, number in LABELS.items()]
    volume = MetaTensor(torch.from_numpy(chest.mask.astype(np.uint8))[None], affine=torch.from_numpy(chest.affine))
    picture = torch.zeros(1, 80, 192, dtype=torch.uint8)
    picture[:, 20:40, 50:90] = 1

    for image, mask in (("chest_2", volume), ("spine", MetaTensor(picture))):
        file = write_volume(tmp_path / f"{image}.nrrd", mask)
        client.save_label(image, str(file), params={"label_info": segments, "model": "supervised"})
        label = client.download_label(image, "final")
        np.testing.assert_array_equal(read_mask(Path(label)).numpy(), mask.numpy())
