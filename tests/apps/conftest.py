"""A real server over a small phantom study, started once, and a thin client."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from medseg.phantoms.study import StudyOptions, write_study
from medseg.server.launch import RunningServer, running_server

APP = Path(__file__).parents[2] / "apps" / "medseg"
TINY = "iterations=12,epoch_iterations=4,width=4,patch=16,16,16,amp=off"
PHANTOMS = StudyOptions(shape=(32, 32, 16))


@dataclass
class Api:
    """Requests to a server."""

    url: str

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(method, self.url + path, timeout=120, **options)

    def json(self, method: str, path: str, **options: Any) -> Any:
        reply = self.send(method, path, **options)
        assert reply.status_code == 200, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json()

    def raw(self, method: str, path: str) -> requests.Response:
        """Send a path as it stands; requests would resolve `..` before sending."""
        request = requests.Request(method, self.url).prepare()
        request.url = self.url + path
        with requests.Session() as session:
            return session.send(request, timeout=30)

    def infer(self, model: str, image: str, output: str = "json", **params: Any) -> requests.Response:
        return self.send("POST", f"/infer/{model}?image={image}&output={output}", data={"params": json.dumps(params)})

    def wait_for_training(self, seconds: float = 400.0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The task record at the end, and the `train_stats` seen on the way."""
        seen = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            record = self.json("GET", "/train/")
            stats = next(iter(self.json("GET", "/info/")["train_stats"].values()))
            seen.append(stats)
            if record["status"] not in ("SUBMITTED", "RUNNING"):
                return record, seen
            time.sleep(0.2)
        raise AssertionError(f"training did not end within {seconds} s: {record}")


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 images, 3 of them labelled, in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("studies") / "left atrium"
    return write_study(folder, count=10, labelled=3, options=PHANTOMS)


@pytest.fixture(scope="session")
def phantoms() -> StudyOptions:
    """What the study's images look like."""
    return PHANTOMS


@pytest.fixture(scope="session")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks of all images of `study`."""
    folder = write_study(tmp_path_factory.mktemp("truth"), count=10, labelled=None, options=PHANTOMS)
    return folder / "labels" / "final"


@pytest.fixture(scope="session")
def make_api() -> type[Api]:
    """The client, for tests with a server of their own."""
    return Api


@pytest.fixture(scope="session")
def app_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the app, so that tests leave no models in the source tree; its path has a space."""
    folder = tmp_path_factory.mktemp("an app") / "medseg"
    folder.mkdir()
    shutil.copy(APP / "main.py", folder)
    return folder


@pytest.fixture(scope="session")
def server(app_dir: Path, study: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The server of most tests."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # server, job and tests share the cores
    log = tmp_path_factory.mktemp("log") / "server.log"
    with running_server(
        app_dir, str(study), {"models": "caml,supervised", "set": TINY, "device": "cpu"}, log
    ) as started:
        yield started


@pytest.fixture(scope="session")
def api(server: RunningServer) -> Api:
    """Client of the server."""
    return Api(server.url)


@pytest.fixture(scope="session")
def untrained(api: Api) -> dict[str, Any]:
    """What the server answered before there was a model."""
    return {
        "info": api.json("GET", "/info/"),
        "infer": api.infer("caml", "organ_004"),
        "scoring": api.send("POST", "/scoring/caml", json={}),
        "next": api.json("POST", "/activelearning/caml", json={"client_id": "early"}),
        "page": api.send("GET", "/medseg/"),
    }


@pytest.fixture(scope="session")
def trained(api: Api, untrained: dict[str, Any]) -> dict[str, Any]:
    """The first training, over HTTP."""
    started = api.json("POST", "/train/caml", json={"device": ["cpu"]})
    second = api.send("POST", "/train/caml", json={})
    record, seen = api.wait_for_training()
    return {"started": started, "second": second, "record": record, "seen": seen}
