"""Slicer's and OHIF's requests to one model of two joints: whose segments come, also after the domain is switched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from torch import nn

from medseg.cases import load_cases
from medseg.inference.model_folder import save_model
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.method import MultiDomain
from medseg.phantoms.joints import make_joint, write_joints
from medseg.phantoms.study import write_grid
from medseg.server.launch import running_server
from medseg.training.registry import ModelRegistry
from medseg.training.study import study_key
from medseg.transforms.io import read_mask

pytestmark = [pytest.mark.server, pytest.mark.slow]

LABELS = {"tibia": 1, "talus": 2, "femur": 3}
OWN = {"ankle": {"tibia": 1, "talus": 2}, "knee": {"tibia": 1, "femur": 3}}
SHAPE = (24, 24, 4)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[str]:
    """A server over an ankle and a knee with a model that finds the first bone of a domain everywhere."""
    folder = tmp_path_factory.mktemp("clinic")
    cases = [case for case in load_cases(write_joints(folder / "learnt", 2, SHAPE)) if case.dataset in OWN]
    settings = {"patch": (16, 16), "width": 2, "amp": "off"}
    torch.manual_seed(0)
    method = MultiDomain(MultiDomain.fit_config(MultiDomainConfig.from_dict(settings), cases), LABELS)
    for head in method.network.heads.values():
        nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor([0.0, 9.0, 0.0])
    for name in OWN:
        write_grid(folder / "study" / f"{name}_07.nii.gz", make_joint(name, 7, SHAPE)[0], np.eye(4))
    (folder / "study" / "labels.json").write_text(json.dumps(LABELS))
    registry = ModelRegistry(folder / "model", study=study_key(str(folder / "study")), tracking_uri="off")
    save_model(folder / "run", method)
    registry.promote("multidomain", registry.publish("multidomain", folder / "run", {"quality": 0.1}))
    conf = {"models": "multidomain", "model_dir": str(folder / "model"), "device": "cpu", "tracking_uri": "off"}
    conf |= {"auto_scoring": "false"}
    with running_server(root / "apps" / "medseg", str(folder / "study"), conf, folder / "server.log") as server:
        yield server.url


def test_slicer_names_the_segments_of_the_domain_that_is_chosen(clinic: str, slicer: Any, tmp_path: Path) -> None:
    client = slicer(clinic, tmp_path)
    choices = client.info()["models"]["multidomain"]["config"]["domain"]
    assert choices == ["automatic", "ankle", "knee"]

    def run(image: str, domain: Any) -> tuple[set[int], dict[str, int], str]:
        params = {"result_extension": ".nrrd", "result_dtype": "uint8", "largest_cc": False, "domain": domain}
        file, reply = client.infer("multidomain", image, params)
        return set(np.unique(read_mask(Path(file)).numpy())), reply["label_names"], reply["domain_from"]

    assert run("ankle_07", choices) == ({LABELS["tibia"]}, OWN["ankle"], "file name")  # nothing chosen: the whole list
    assert run("knee_07", "automatic") == ({LABELS["femur"]}, OWN["knee"], "file name")
    assert run("ankle_07", "knee") == ({LABELS["femur"]}, OWN["knee"], "request")
    assert run("ankle_07", "ankle") == ({LABELS["tibia"]}, OWN["ankle"], "request")


def test_ohif_gets_the_voxels_of_the_domain_in_the_numbers_of_all_labels(clinic: str, tmp_path: Path) -> None:
    about = requests.get(f"{clinic}/info/").json()["models"]["multidomain"]
    assert about["labels"] == LABELS  # by which the panel names all segments, whatever the image

    def run(image: str, params: dict[str, Any]) -> set[int]:
        answer = requests.post(
            f"{clinic}/infer/multidomain", params={"image": image, "output": "image"},
            files={"params": (None, json.dumps({"result_extension": ".nrrd", **params}))},
        )  # fmt: skip
        answer.raise_for_status()
        (tmp_path / "mask.nrrd").write_bytes(answer.content)
        return set(np.unique(read_mask(tmp_path / "mask.nrrd").numpy()))

    assert run("knee_07", {}) == {LABELS["femur"]}
    assert run("knee_07", {"domain": "ankle"}) == {LABELS["tibia"]}
    refused = requests.post(
        f"{clinic}/infer/multidomain", params={"image": "knee_07"}, data={"params": json.dumps({"domain": "hip"})}
    )
    assert refused.status_code == 404
    assert "no domain 'hip'; this model knows ankle, knee" in refused.text
