"""Several domains in one app: labels, choices, splits and strategies by domain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medseg.acquisition.score_store import StoredScore
from medseg.errors import MedsegError, NotFoundError
from medseg.files import read_json, write_json
from medseg.phantoms.joints import JOINTS, make_joint
from medseg.phantoms.study import write_grid
from medseg.server.app import MedsegApp

LABELS = {"tibia": 1, "talus": 2, "femur": 3, "humerus": 4}
CONF = {
    "models": "multidomain",
    "set": "iterations=2,epoch_iterations=2,width=2,patch=16,16,domain_batch=2,norm_batches=1,amp=off",
    "device": "cpu",
    "tracking_uri": "off",
}

Make = Callable[..., MedsegApp]


@pytest.fixture
def make_union(tmp_path: Path) -> Make:
    """Makes an app over 4 images of each of 3 joints, 3 of them labelled, in the study's own numbers."""
    for name, joint in JOINTS.items():
        table = np.array([0, *(LABELS[bone] for bone in joint.bones)], np.uint8)
        for index in range(4):
            image, mask = make_joint(name, index, (24, 24, 4))
            write_grid(tmp_path / "study" / f"{name}_{index:02d}.nii.gz", image, np.eye(4))
            if index < 3:
                write_grid(
                    tmp_path / "study" / "labels" / "final" / f"{name}_{index:02d}.nii.gz", table[mask], np.eye(4)
                )
    write_json(tmp_path / "study" / "labels.json", LABELS)

    def make(**conf: Any) -> MedsegApp:
        settings = {**CONF, "model_dir": str(tmp_path / "model"), **conf}
        return MedsegApp(str(tmp_path / "app"), str(tmp_path / "study"), settings)

    return make


def test_one_model_serves_all_domains_with_their_own_labels(make_union: Make) -> None:
    app = make_union()
    decision = app.train({"model": "multidomain"})["decision"]

    assert decision["published"]
    assert (decision["labelled"], decision["validation"]) == (6, 3)  # one patient of each domain validates
    roles = read_json(app.study.folder / "split.json")
    assert sorted(name.split("_")[0] for name, role in roles.items() if role == "validation") == sorted(JOINTS)
    assert app.info()["models"]["multidomain"]["config"]["domain"] == ["automatic", "ankle", "knee", "shoulder"]

    told = {name: app.infer({"model": "multidomain", "image": f"{name}_03"})["params"] for name in JOINTS}
    assert {name: params["label_names"] for name, params in told.items()} == {
        "ankle": {"tibia": 1, "talus": 2}, "knee": {"tibia": 1, "femur": 3}, "shoulder": {"humerus": 4}
    }  # fmt: skip
    asked = app.infer({"model": "multidomain", "image": "ankle_03", "domain": "knee"})["params"]
    assert asked["label_names"] == {"tibia": 1, "femur": 3}
    with pytest.raises(NotFoundError, match="no domain 'hip'; this model knows ankle, knee, shoulder") as error:
        app.infer({"model": "multidomain", "image": "ankle_03", "domain": "hip"})
    assert error.value.status == 404
    with pytest.raises(MedsegError, match="pretrained cannot be set by a request, because it names a file"):
        app.train({"model": "multidomain", "pretrained": "/etc/passwd"})


def test_weakest_domain_is_the_one_of_the_score_or_of_the_runs_own_pattern(
    make_union: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_union(set=CONF["set"] + ",domain_pattern=^(ank|kn|sh)")
    validation = {"ankle_02": {"dice": 0.9}, "knee_02": {"dice": 0.5}, "shoulder_02": {"dice": 0.7}}
    champion = SimpleNamespace(number=1, metrics={"validation": {"cases": validation}})
    monkeypatch.setattr(app.study.registry, "champion", lambda method: champion)

    strategy = app._strategies["multidomain_weakest"]
    assert [scored.id for scored in strategy.ranking()] == ["knee_03", "shoulder_03", "ankle_03"]
    assert strategy.ranking()[0].why.startswith("kn, quality 0.50: ")
    store = app.study.scores("multidomain")
    store.update([StoredScore("ankle_03", 1, "", 0.4, "unsure", group="kn")])
    ranking = strategy.ranking()
    assert [scored.id for scored in ranking] == ["ankle_03", "shoulder_03", "knee_03"]  # both of the weakest domain
    assert ranking[0].why == "kn, quality 0.50: unsure"


def test_one_domain_is_one_turn_and_not_one_for_each_patient(make_union: Make) -> None:
    app = make_union(patient_pattern=r"(\d+)$")
    for image in app.study.datastore.list_images():
        app.datastore().update_image_info(image, {"weak": {"domain": "joint"}})

    assert set(app.study.domains("multidomain").values()) == {"joint"}
    assert set(app.study.strata().values()) == {"00", "01", "02", "03"}
    assert all(
        scored.why.startswith("joint, no validation") for scored in app._strategies["multidomain_weakest"].ranking()
    )


def test_domain_of_an_archive_comes_from_what_is_kept_of_its_headers(make_union: Make) -> None:
    app = make_union(set=CONF["set"] + ",domain_pattern=^(never)")
    for image in app.study.datastore.list_images():
        app.datastore().update_image_info(image, {"BodyPartExamined": image.split("_")[0].upper()})

    assert app.study.case("knee_00").tags == {"BodyPartExamined": "KNEE"}
    assert app.study.domains() == {image: image.split("_")[0] for image in app.study.datastore.list_images()}


def test_domain_that_gets_its_second_image_goes_on_from_what_its_first_one_taught(
    make_union: Make, tmp_path: Path
) -> None:
    later = [file for file in (tmp_path / "study").rglob("knee_0*.nii.gz") if "knee_00" not in file.name]
    kept = {file: file.read_bytes() for file in later}
    for file in later:
        file.unlink()

    def run() -> dict[str, Any]:
        app = make_union(init="champion")
        app.train({"model": "multidomain"})
        about = read_json(app._trainers["multidomain"].runs.folders()[-1] / "config.json")
        return {"key": app.study.key, **about["config"]}

    alone = run()
    for file, content in kept.items():
        file.write_bytes(content)
    grown = run()

    key = alone["key"]
    assert list(alone["domains"]) == ["ankle", key, "shoulder"]
    assert alone["domains"][key]["aliases"] == ["knee"]
    assert list(grown["domains"]) == ["ankle", "shoulder", "knee"]
    assert (grown["heirs"], grown["added"]) == ({"knee": key}, [])  # no old domain without cases stays behind
