from __future__ import annotations

import http.server
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg.errors import ConflictError, MedsegError, NotFoundError
from medseg.server import launch
from medseg.server.dicom.catalogue import Catalogue, archive_folder
from medseg.server.folders import SERVICE_FOLDER

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


class _Answers(http.server.BaseHTTPRequestHandler):
    """`/root` answers as Orthanc's own interface, `/dicom-web` as a DICOMweb root, everything else as a web page."""

    def do_GET(self) -> None:
        bodies = {"/root": b'["0a-1b"]', "/dicom-web": b"[]"}
        body = bodies.get("/" + self.path.split("/")[1], b"<html>")
        self.send_response(404 if self.path.startswith("/lost") else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a server that is no archive, but for one path."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["/root", "/page", "/lost"])
def test_an_address_that_is_no_dicomweb_root_is_one_sentence(web: str, path: str, tmp_path: Path) -> None:
    conf = {"models": "supervised", "model_dir": str(tmp_path)}

    with pytest.raises(ConflictError, match=r"is no DICOMweb root; Orthanc's is http://.*/dicom-web"):
        launch.check(APP, web + path, conf)
    launch.check(APP, f"{web}/dicom-web/", conf)


def test_an_archive_that_is_away_is_one_sentence_unless_it_was_seen_before(tmp_path: Path) -> None:
    url, conf = "http://127.0.0.1:9/dicom-web", {"models": "supervised", "model_dir": str(tmp_path)}

    with pytest.raises(ConflictError, match="does not answer"):
        launch.check(APP, url, conf)
    service = archive_folder(url, tmp_path) / SERVICE_FOLDER
    service.mkdir(parents=True)
    Catalogue(service).set_images({})
    launch.check(APP, url, conf)


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
