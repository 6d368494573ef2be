"""The annotate-retrain loop against a real server, as viewers drive it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monailabel.client.client import MONAILabelClient

from medseg.phantoms.organs import make_organ
from medseg.phantoms.study import write_grid
from medseg.transforms.io import read_image, read_mask

pytestmark = pytest.mark.server


def test_info_names_tasks_and_labels_before_there_is_a_model(untrained: dict[str, Any]) -> None:
    info = untrained["info"]

    assert info["name"] == "medseg"
    assert info["labels"] == ["atrium"]
    assert sorted(info["trainers"]) == sorted(info["scoring"]) == ["caml", "supervised"]
    assert {"caml", "supervised", "random", "first"} <= set(info["strategies"])
    assert info["models"] == {}
    assert (info["datastore"]["total"], info["datastore"]["completed"]) == (10, 3)
    assert info["loop"]["methods"]["caml"]["version"] is None


def test_infer_and_scoring_without_a_model_say_what_to_do(untrained: dict[str, Any]) -> None:
    for reply in (untrained["infer"], untrained["scoring"]):
        assert reply.status_code == 409
        assert "3 images are labelled; train it" in reply.json()["detail"]


def test_next_sample_without_a_model_still_gives_an_image(untrained: dict[str, Any]) -> None:
    assert untrained["next"]["id"] in {f"organ_00{n}" for n in range(3, 10)}
    assert "no model yet" in untrained["next"]["why"]
    assert Path(untrained["next"]["path"]).is_file()


def test_training_shows_its_progress_and_publishes(trained: dict[str, Any], api: Any) -> None:
    assert trained["started"]["status"] in ("SUBMITTED", "RUNNING")
    assert trained["record"]["status"] == "DONE", trained["record"]["details"]
    states = [stats.get("state") for stats in trained["seen"]]
    last = trained["seen"][-1]
    assert "running" in states
    assert (last["state"], last["iteration"], last["iterations"]) == ("done", 12, 12)
    assert (last["epoch"], last["total_epochs"]) == (3, 3)
    assert last["decision"]["published"] is True
    assert 0 < last["best_metric"] <= 1
    assert set(last["terms"]) >= {"loss", "supervised"}
    model = api.json("GET", "/info/")["models"]["caml"]
    assert (model["version"], model["type"], model["dimension"], model["labels"]) == (
        1,
        "segmentation",
        3,
        {"atrium": 1},
    )


def test_a_second_training_is_refused_while_one_runs(trained: dict[str, Any]) -> None:
    assert trained["second"].status_code == 429
    assert "already running" in trained["second"].json()["detail"].lower()


@pytest.mark.usefixtures("trained")
def test_slicer_session(api: Any, study: Path, truth: Path, tmp_path: Path) -> None:
    client = MONAILabelClient(api.url, tmpdir=str(tmp_path), client_id="slicer-user")
    assert client.auth_enabled() is False
    info = client.info()
    assert client.train_status(check_if_running=True) is False

    sample = client.next_sample("caml", {})
    assert sample["id"] in {f"organ_00{n}" for n in range(3, 10)}
    assert Path(sample["path"]).is_file()
    assert "original" not in client.datastore()["objects"][sample["id"]]["labels"]

    config = info["models"]["caml"]["config"]
    file, result = client.infer("caml", sample["id"], {**config, "result_extension": ".nrrd", "result_dtype": "uint8"})
    mask, image = read_mask(Path(file)), read_image(Path(sample["path"]))
    assert Path(file).name.endswith(".nrrd")
    assert sitk.ReadImage(file).GetPixelID() == sitk.sitkUInt8
    assert mask.shape[1:] == image.shape[1:]
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    assert result["label_names"] == {"atrium": 1}
    assert (result["version"], result["why"]) == (1, sample["why"])
    assert result["latencies"]["total"] > 0

    corrected = truth / f"{sample['id']}.nii.gz"
    saved = client.save_label(sample["id"], str(corrected), params={"label_info": [{"name": "atrium", "idx": 1}]})
    assert saved["image"] == sample["id"]
    assert isinstance(saved["remarks"], list)
    assert client.info()["datastore"]["completed"] == info["datastore"]["completed"] + 1
    stored = read_mask(study / "labels" / "final" / corrected.name)
    np.testing.assert_array_equal(stored, read_mask(corrected))

    assert api.send("DELETE", "/train/").status_code == 200
    assert client.next_sample("caml", {})["id"] != sample["id"]


@pytest.mark.usefixtures("trained")
def test_own_image_in_a_session_then_added_to_the_study(api: Any, tmp_path: Path) -> None:
    image = tmp_path / "own_image.nii.gz"
    organ = make_organ(99, (32, 32, 16), 1, (1.0, 1.0, 2.0), 0.0)
    write_grid(image, organ.image, organ.affine)
    client = MONAILabelClient(api.url, tmpdir=str(tmp_path), client_id="slicer-user")

    session = client.create_session(str(image))["session_id"]
    file, result = client.infer("caml", "", {"result_extension": ".nrrd"}, session_id=session)
    assert read_mask(Path(file)).shape == (1, 32, 32, 16)
    assert "why" not in result
    client.remove_session(session)
    assert api.send("POST", f"/infer/caml?image=&session_id={session}&output=json").status_code == 404

    assert client.upload_image(str(image), "own_image")["image"] == "own_image"
    assert "own_image" in {entry["id"] for entry in api.json("GET", "/medseg/unlabelled?strategy=first")}
    api.json("DELETE", "/datastore/image?id=own_image")


@pytest.mark.usefixtures("trained")
def test_ohif_asks_for_an_image_and_a_training_of_one_model(api: Any, tmp_path: Path) -> None:
    request = {
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    }

    reply = api.infer("caml", "organ_005", output="image", **request)

    file = tmp_path / "mask.nrrd"
    file.write_bytes(reply.content)
    assert b"encoding: raw" in reply.content[:800]
    assert read_mask(file).shape == (1, 32, 32, 16)
    assert api.send("POST", "/train/", json={"caml": {"nonsense": 1}}).status_code == 400


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".mha"])
def test_infer_writes_what_is_asked_for(api: Any, tmp_path: Path, extension: str) -> None:
    reply = api.infer("caml", "organ_004", output="image", result_extension=extension, result_dtype="int16")
    file = tmp_path / f"mask{extension}"
    file.write_bytes(reply.content)

    image = sitk.ReadImage(str(file))

    assert image.GetSize() == (32, 32, 16)
    assert image.GetPixelID() == sitk.sitkInt16


@pytest.mark.usefixtures("trained")
def test_uncertainty_map_on_request(api: Any, tmp_path: Path) -> None:
    assert api.send("GET", "/medseg/uncertainty?model=caml&image=organ_003").status_code == 404

    result = api.infer("caml", "organ_003", uncertainty=True).json()

    file = tmp_path / "u.nii.gz"
    file.write_bytes(api.send("GET", result["uncertainty"]["url"]).content)
    map_ = read_image(file)
    assert map_.shape == (1, 32, 32, 16)
    assert 0 <= float(map_.min()) <= float(map_.max()) <= 1
    assert float(map_.mean()) == pytest.approx(result["uncertainty"]["mean"], abs=1e-3)


@pytest.mark.usefixtures("trained")
def test_scoring_starts_by_itself_once_and_the_strategy_follows_it(api: Any) -> None:
    deadline = time.monotonic() + 60
    pool = api.json("GET", "/medseg/unlabelled?strategy=caml")
    while any(entry["score"] is None for entry in pool):
        assert time.monotonic() < deadline, api.json("GET", "/medseg/state")["jobs"]
        time.sleep(0.5)
        pool = api.json("GET", "/medseg/unlabelled?strategy=caml")

    values = [entry["score"] for entry in pool]
    assert values == sorted(values, reverse=True)
    assert all(any(ch.isdigit() for ch in entry["why"]) for entry in pool)
    jobs = len(api.json("GET", "/scoring/?all=true"))
    free = [entry["id"] for entry in pool if not entry["held_by"]]
    assert api.json("POST", "/activelearning/caml", json={"client_id": "late"})["id"] == free[0]
    time.sleep(6)
    assert len(api.json("GET", "/scoring/?all=true")) == jobs  # a click starts nothing


@pytest.mark.usefixtures("trained")
def test_two_annotators_get_different_images(api: Any) -> None:
    first = api.json("POST", "/activelearning/random", json={"client_id": "ann"})
    second = api.json("POST", "/activelearning/first", json={"client_id": "bob"})

    assert first["id"] != second["id"]


@pytest.mark.usefixtures("trained")
def test_batch_infer_without_a_gpu(api: Any) -> None:
    unlabelled = {entry["id"] for entry in api.json("GET", "/medseg/unlabelled?strategy=first")}

    result = api.json("POST", "/batch/infer/caml?images=unlabeled&run_sync=true")

    assert set(result) == unlabelled
    assert {entry["tag"] for entry in result.values()} == {"original"}
    stored = api.json("GET", "/datastore/?output=all")["objects"]
    assert all("original" in stored[identifier]["labels"] for identifier in unlabelled)
    assert api.json("GET", "/info/")["loop"]["unlabelled"] == len(unlabelled)


@pytest.mark.usefixtures("trained")
def test_info_answers_while_an_infer_runs(api: Any, tmp_path: Path) -> None:
    image = tmp_path / "large.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((112, 112, 64), dtype=np.float32), np.eye(4)), image)
    seconds: list[float] = []

    def infer() -> None:
        started = time.monotonic()
        with open(image, "rb") as file:
            reply = api.send("POST", "/infer/caml?output=json", files={"file": ("large.nii.gz", file)})
        assert reply.status_code == 200, reply.text
        seconds.append(time.monotonic() - started)

    thread = threading.Thread(target=infer)
    thread.start()
    longest = 0.0
    while thread.is_alive():
        started = time.monotonic()
        api.json("GET", "/info/")
        longest = max(longest, time.monotonic() - started)
    thread.join()

    assert seconds
    assert seconds[0] > 3 * longest, f"infer took {seconds[0]:.2f} s, /info/ up to {longest:.2f} s"


@pytest.mark.usefixtures("trained")
def test_versions_rollback_and_status_page(api: Any) -> None:
    versions = api.json("GET", "/medseg/versions?model=caml")
    assert [v["version"] for v in versions if v["champion"]] == [versions[0]["version"]]
    assert versions[-1]["labelled"] == 2
    assert str(Path.home()) not in json.dumps(versions)

    assert api.json("POST", "/medseg/rollback", json={"model": "caml", "version": 1})["champion"] is True
    missing = api.send("POST", "/medseg/rollback", json={"model": "caml", "version": 77})
    assert missing.status_code == 404
    assert "versions kept: 1" in missing.json()["detail"]

    page = api.send("GET", "/medseg/").text
    assert "Version <b>1</b> is served" in page
    assert "http://" not in page.replace(api.url, "")
    assert "https://" not in page


@pytest.mark.usefixtures("trained")
def test_label_history_and_restore(api: Any, study: Path) -> None:
    mask = study / "labels" / "final" / "organ_000.nii.gz"
    before = read_mask(mask)
    changed = nib.load(mask)
    data = np.asarray(changed.dataobj).astype(np.uint8)
    data[:, :, :4] = 0
    with_hole = study.parent / "changed.nii.gz"
    nib.save(nib.Nifti1Image(data, changed.affine), with_hole)

    with open(with_hole, "rb") as file:
        api.json(
            "PUT", "/datastore/label?image=organ_000", files={"label": file}, data={"params": '{"client_id": "eve"}'}
        )
    history = api.json("GET", "/medseg/history?image=organ_000")
    api.json("POST", "/medseg/restore", json={"image": "organ_000", "version": history[-1]["version"]})

    np.testing.assert_array_equal(read_mask(mask), before)
    assert len(api.json("GET", "/medseg/history?image=organ_000")) == len(history) + 1
