"""MONAI Label's own command, as its users type it: nothing of `medseg serve` prepares the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medseg.phantoms.study import StudyOptions, write_study
from medseg.server.launch import RunningServer, free_port, wait_until_ready

pytestmark = pytest.mark.server


def test_monailabels_own_command_serves_the_app(
    app_dir: Path, tmp_path: Path, make_api: Callable[[str], Any], phantoms: StudyOptions
) -> None:
    """From a folder whose path has a space; the script splits words there, so what is typed is relative to it."""
    folder = tmp_path / "reading room"
    shutil.copytree(app_dir, folder / "apps" / "medseg", ignore=shutil.ignore_patterns("model", "logs"))
    write_study(folder / "scans", count=2, labelled=1, options=phantoms)
    programs = Path(sys.executable).parent
    activated = {"PATH": os.pathsep.join([str(programs), os.defpath]), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    port = free_port()
    words = ["start_server", "--app", "apps/medseg", "--studies", "scans", "--conf", "models", "supervised"]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [programs / "monailabel", *words], cwd=folder, env=activated, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    server = RunningServer(f"http://127.0.0.1:{port}", process, tmp_path / "log")
    try:
        wait_until_ready(server)
        info = make_api(server.url).json("GET", "/info/")
        page = make_api(server.url).send("GET", "/medseg/")
    finally:
        server.stop()

    assert list(info["trainers"]) == ["supervised"]
    assert page.status_code == 200
    assert (folder / "scans" / ".medseg" / "journal.jsonl").exists()
