"""A server that is killed while it trains: the training stops, and goes on after the restart."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from medseg.phantoms.study import StudyOptions, write_study
from medseg.server.launch import RunningServer, spawn_server, wait_until_ready

pytestmark = pytest.mark.server

LONG = "iterations=4000,epoch_iterations=20,width=4,patch=16,16,16,amp=off"


def start(app_dir: Path, study: Path, log: Path, model_dir: Path) -> RunningServer:
    conf = {"models": "supervised", "set": LONG, "device": "cpu", "auto_scoring": "false", "model_dir": str(model_dir)}
    server = spawn_server(app_dir, str(study), conf, log)
    wait_until_ready(server)
    return server


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def stats(api: Any) -> dict[str, Any]:
    return api.json("GET", "/info/")["train_stats"]["supervised"]


def test_ended_server_ends_its_training_with_a_checkpoint(
    app_dir: Path, tmp_path: Path, make_api: Callable[[str], Any], phantoms: StudyOptions
) -> None:
    study = write_study(tmp_path / "study", count=2, labelled=2, options=phantoms)
    server = start(app_dir, study, tmp_path / "log", tmp_path / "models")
    try:
        api = make_api(server.url)
        api.json("POST", "/train/supervised", json={})
        wait_for(lambda: (stats(api).get("iteration") or 0) >= 20, 300, "the training did not start")
        family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]

        server.process.terminate()

        server.process.wait(60)  # upstream would wait for the training to end
        assert not psutil.wait_procs(family, timeout=30)[1]
    finally:
        server.stop()
    (run,) = (tmp_path / "models").glob("*/supervised/runs/*")
    assert json.loads((run / "progress.json").read_text())["state"] == "stopped"
    assert (run / "checkpoint.pt").exists()


def test_killed_server_leaves_no_orphan_and_the_training_resumes(
    app_dir: Path, tmp_path: Path, make_api: Callable[[str], Any], phantoms: StudyOptions
) -> None:
    study = write_study(tmp_path / "study", count=3, labelled=3, options=phantoms)
    server = start(app_dir, study, tmp_path / "log", tmp_path / "models")
    try:
        api = make_api(server.url)
        api.json("POST", "/train/supervised", json={})
        wait_for(lambda: (stats(api).get("iteration") or 0) >= 40, 300, "the training did not start")
        jobs = psutil.Process(server.process.pid).children(recursive=True)
        assert jobs

        os.kill(server.process.pid, signal.SIGKILL)  # the server alone; its job must notice by itself

        _, alive = psutil.wait_procs(jobs, timeout=90)
        assert not alive, "the training went on without its server"
    finally:
        server.stop()
    (run,) = (tmp_path / "models").glob("*/supervised/runs/*")
    progress = json.loads((run / "progress.json").read_text())
    assert progress["state"] == "stopped"
    assert 40 <= progress["iteration"] < 4000
    assert (run / "checkpoint.pt").exists()

    server = start(app_dir, study, tmp_path / "log", tmp_path / "models")
    try:
        api = make_api(server.url)
        assert stats(api)["state"] in ("stopped", "failed")
        assert stats(api)["error"]
        api.json("POST", "/train/supervised", json={"iterations": progress["iteration"] + 20})
        wait_for(lambda: stats(api)["state"] == "done", 300, "the training did not end")
        done = stats(api)
    finally:
        server.stop()

    assert done["run"] == run.name
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["iterations"] == progress["iteration"] + 20
    history = [entry["iteration"] for entry in metrics["history"] if "loss" in entry]
    assert history[0] < progress["iteration"] < history[-1]
    assert done["decision"]["version"] == 1
