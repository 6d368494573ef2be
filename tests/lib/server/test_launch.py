from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from medseg.errors import ConflictError, MedsegError, NotFoundError
from medseg.server import launch

APP = Path(__file__).parents[3] / "apps" / "medseg"


def test_command_keeps_spaces_and_makes_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    words = launch.command(Path("my app"), "my study", "127.0.0.1", 8001, {"labels": "left atrium,scar"})

    assert words[:4] == [sys.executable, "-m", "monailabel.main", "start_server"]
    assert words[words.index("--app") + 1] == str(tmp_path / "my app")
    assert words[words.index("--studies") + 1] == str(tmp_path / "my study")
    assert words[-3:] == ["--conf", "labels", "left atrium,scar"]


def test_command_leaves_urls_alone() -> None:
    words = launch.command(Path("a"), "http://pacs:8042/dicom-web", "::1", 1, {})

    assert "http://pacs:8042/dicom-web" in words


def test_environment_corrects_the_defaults_and_keeps_the_rest() -> None:
    env = launch.environment({"PATH": "/bin", "HOME": "/h"})

    assert env["MONAI_LABEL_AUTO_UPDATE_SCORING"] == env["MONAI_LABEL_TRACKING_ENABLED"] == "false"
    assert env["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]
    assert (env["HOME"], env["PYTHONPATH"]) == ("/h", "")


def test_check_finds_mistakes_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match=r"main\.py"):
        launch.check(tmp_path, str(tmp_path), {})
    with pytest.raises(NotFoundError, match="does not exist"):
        launch.check(APP, str(tmp_path / "none"), {})
    monkeypatch.setattr(launch.os, "access", lambda path, mode: False)  # root may write anywhere else
    with pytest.raises(MedsegError, match="cannot be written, but labels are kept there"):
        launch.check(APP, str(tmp_path), {})
    monkeypatch.setenv("MONAI_LABEL_DATASTORE_READ_ONLY", "true")
    launch.check(APP, str(tmp_path), {})
    monkeypatch.undo()
    with pytest.raises(MedsegError, match="known models"):
        launch.check(APP, str(tmp_path), {"models": "x"})
    launch.check(APP, "https://pacs/dicom-web", {"models": "supervised"})


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(ConflictError, match=f"port {port}"):
            launch.start_server(APP, str(tmp_path), "127.0.0.1", port, {"models": "supervised"})


def test_last_words_find_the_reason_in_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a\nmedseg.errors.MedsegError: there is no model 'x'\n[ERROR] startup failed. Exiting.\n\n")

    assert launch.last_words(log).endswith("there is no model 'x'")


def test_a_server_that_ends_while_starting_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "command", lambda *_: [sys.executable, "-c", "raise ValueError('no luck')"])

    with (
        pytest.raises(MedsegError, match="ValueError: no luck"),
        launch.running_server(APP, str(tmp_path), {"models": "supervised"}, tmp_path / "log"),
    ):
        pass
