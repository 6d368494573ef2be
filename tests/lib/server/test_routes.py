"""The installed application in this process: MONAI Label's routes, guarded, and ours."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings as monai_settings
from monailabel.endpoints import infer, info, logs
from monailabel.interfaces.utils import app as app_module

from medseg.errors import UnusableInputError
from medseg.phantoms.study import StudyOptions, write_study
from medseg.server.app import MedsegApp
from medseg.server.install import install

CONF = {
    "models": "supervised",
    "set": "iterations=4,epoch_iterations=2,width=4,patch=16,16,16,amp=off",
    "device": "cpu",
    "tracking_uri": "off",
    "upload_gb": "0.001",
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MedsegApp]:
    folder = tmp_path_factory.mktemp("routes")
    studies = write_study(folder / "study", count=4, labelled=3, options=StudyOptions(shape=(24, 24, 16)))
    made = MedsegApp(str(folder / "app"), str(studies), {**CONF, "model_dir": str(folder / "model")})
    old = monai_settings.MONAI_LABEL_APP_DIR, monai_settings.MONAI_LABEL_STUDIES
    monai_settings.MONAI_LABEL_APP_DIR, monai_settings.MONAI_LABEL_STUDIES = made.app_dir, made.studies
    app_module.apps[f"{made.app_dir}{made.studies}"] = made
    yield made
    app_module.clear_cache()
    monai_settings.MONAI_LABEL_APP_DIR, monai_settings.MONAI_LABEL_STUDIES = old


@pytest.fixture(scope="module")
def client(app: MedsegApp) -> TestClient:
    web = FastAPI()
    for module in (info, infer, logs):
        web.include_router(module.router)
    install(app, web)
    return TestClient(web, base_url="http://127.0.0.1", client=("127.0.0.1", 9), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def trained(app: MedsegApp) -> MedsegApp:
    app.train({"model": "supervised"})
    return app


def test_each_route_is_there_once_and_documented(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    assert {"/info/", "/infer/{model}", "/medseg/state", "/train/{model}", "/datastore/label"} <= set(paths)
    assert "image" in {p["name"] for p in paths["/infer/{model}"]["post"]["parameters"]}


def test_an_unexpected_failure_is_json_without_its_text(
    client: TestClient, app: MedsegApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("/secret/place")

    monkeypatch.setattr(app, "info", fail)

    reply = client.get("/info/")

    assert reply.status_code == 500
    assert reply.json() == {"detail": "the server failed with RuntimeError; its log says where"}
    assert "/secret/place" in caplog.text


def test_medseg_errors_keep_their_status_and_lose_their_paths(
    client: TestClient, app: MedsegApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise UnusableInputError(f"{app.studies}/a.nii.gz is damaged")

    monkeypatch.setattr(app, "info", fail)

    reply = client.get("/info/")

    assert (reply.status_code, reply.json()) == (422, {"detail": "a.nii.gz is damaged"})


def test_a_slow_infer_does_not_hold_up_info(
    client: TestClient, trained: MedsegApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(request: Any) -> tuple[None, dict[str, Any]]:
        entered.set()
        assert leave.wait(20)
        return None, {"slow": True}

    monkeypatch.setattr(type(trained._infers["supervised"]), "__call__", lambda self, request: slow(request))
    replies: list[Any] = []
    with client:  # one event loop for all requests, as in a server
        path = "/infer/supervised?image=organ_003&output=json"
        thread = threading.Thread(target=lambda: replies.append(client.post(path).json()))
        thread.start()
        assert entered.wait(20)
        started = time.monotonic()
        assert client.get("/info/").status_code == 200
        seconds = time.monotonic() - started
        leave.set()
        thread.join()

    assert seconds < 5
    assert replies == [{"slow": True}]


def test_uploads_over_the_limit_are_refused(client: TestClient) -> None:
    big = {"file": ("a.nii.gz", b"0" * 2_000_000)}

    reply = client.put("/datastore/image?image=big", files=big)

    assert reply.status_code == 413
    assert "upload_gb" in reply.json()["detail"]


def test_unlabelled_lists_every_image_with_its_holder(client: TestClient, trained: MedsegApp) -> None:
    trained.next_sample({"strategy": "first", "client_id": "ann"})

    pool = client.get("/medseg/unlabelled?strategy=first").json()

    assert pool == [{"id": "organ_003", "score": None, "why": "next in the order of names", "held_by": "ann"}]
    assert client.get("/medseg/unlabelled?strategy=nope").status_code == 404


def test_versions_and_rollback(client: TestClient, trained: MedsegApp) -> None:
    (version,) = client.get("/medseg/versions?model=supervised").json()

    assert (version["version"], version["champion"], version["labelled"], version["iterations"]) == (1, True, 2, 4)
    assert client.post("/medseg/rollback", json={"model": "supervised", "version": 1}).json() == version
    assert client.post("/medseg/rollback", json={"model": "supervised", "version": 9}).status_code == 404
    assert client.post("/medseg/rollback", json={"model": "nope", "version": 1}).status_code == 404
    bad = client.post("/medseg/rollback", json={"model": "supervised"})
    assert (bad.status_code, bad.json()["detail"]) == (400, "version: Field required")


def test_status_page_shows_version_progress_and_errors(client: TestClient, trained: MedsegApp) -> None:
    page = client.get("/medseg/").text
    assert "Version <b>1</b> is served" in page
    assert "Training: <b>done</b>, iteration 4 of 4" in page
    assert "<circle" in page

    with pytest.raises(ValueError, match="iterations"):
        trained.train({"model": "supervised", "iterations": "<script>"})

    page = client.get("/medseg/").text
    assert "Training: <b>failed</b>" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_state_is_json_without_paths(client: TestClient, trained: MedsegApp, tmp_path: Path) -> None:
    state = client.get("/medseg/state").json()

    assert (state["labels"], state["loop"]["labelled"]) == ({"atrium": 1}, 3)
    assert str(Path(trained.studies).parent) not in json.dumps(state["versions"])


def test_history_of_a_label(client: TestClient, trained: MedsegApp, tmp_path: Path) -> None:
    mask = Path(trained.studies) / "labels" / "final" / "organ_000.nii.gz"
    shutil.copy(mask, tmp_path / "again.nii.gz")
    trained.datastore().save_label("organ_000", str(tmp_path / "again.nii.gz"), "final", {"client_id": "ann"})

    history = client.get("/medseg/history?image=organ_000").json()

    assert [entry["version"] for entry in history] == [1]
    restored = client.post("/medseg/restore", json={"image": "organ_000", "version": 1})
    assert restored.json()["restored_from"] == 1
    assert client.get("/medseg/history?image=../x").status_code == 400
    assert "no DICOMweb archive" in client.get("/medseg/outcome?series=1.2").json()["detail"]
