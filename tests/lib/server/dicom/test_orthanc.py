"""Starting an archive of one's own."""

from __future__ import annotations

import http.server
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import ConflictError, MedsegError
from medseg.server.dicom import orthanc
from medseg.server.launch import free_port

pytestmark = pytest.mark.viewers


@pytest.fixture(autouse=True)
def installed(archive: orthanc.Orthanc) -> None:
    """These tests start archives; the fixture knows whether that can be."""


class _SaysYes(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


def test_somebody_elses_server_on_the_port_is_not_taken_for_ours(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _SaysYes) as theirs:
        threading.Thread(target=theirs.serve_forever, daemon=True).start()

        with pytest.raises(ConflictError, match=f"port {theirs.server_port}"):
            orthanc.spawn(tmp_path, theirs.server_port)

        theirs.shutdown()


def test_an_orthanc_that_ends_at_once_is_quoted_whoever_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthanc, "check_port", lambda host, port: None)  # somebody comes between the look and the start
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _SaysYes) as theirs:
        threading.Thread(target=theirs.serve_forever, daemon=True).start()
        real = subprocess.Popen

        def ended(*words: object, **more: object) -> subprocess.Popen[bytes]:
            process = real([sys.executable, "-c", "print('Error: no port')"], stdout=more["stdout"])  # type: ignore[call-overload]
            process.wait()
            return process  # type: ignore[no-any-return]

        monkeypatch.setattr(orthanc.subprocess, "Popen", ended)
        with pytest.raises(MedsegError, match="ended while starting: Error: no port"):
            orthanc.spawn(tmp_path, theirs.server_port)
        theirs.shutdown()


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_dicom_is_one_sentence(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no DICOM")

    code = orthanc.main([str(tmp_path / folder), "--port", str(free_port())])

    assert code == 2
    assert str(tmp_path / folder) in capsys.readouterr().err


def test_a_file_that_the_archive_refuses_is_told_and_left_out(
    archive: orthanc.Orthanc, make_series, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = make_series(np.zeros((4, 4, 2)), np.diag([-1.0, -1.0, 2.0, 1.0]))
    (folder / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"nothing")

    assert archive.upload(folder) == 2
    assert "broken.dcm is not stored" in caplog.text


def test_an_archive_that_goes_away_meanwhile_is_one_sentence(make_series) -> None:
    folder, _ = make_series(np.zeros((4, 4, 2)), np.diag([-1.0, -1.0, 2.0, 1.0]))

    with pytest.raises(MedsegError, match=r"the archive was lost while .*0000\.dcm"):
        orthanc.Orthanc("http://127.0.0.1:9", None).upload(folder)  # type: ignore[arg-type]


def test_the_command_serves_until_it_is_told_to_end(make_series) -> None:
    folder, _ = make_series(np.zeros((4, 4, 2)), np.diag([-1.0, -1.0, 2.0, 1.0]))
    words = [sys.executable, "-m", "medseg.server.dicom.orthanc", str(folder), "--port", str(free_port())]

    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        line = command.stdout.readline()
        command.send_signal(signal.SIGTERM)
        assert command.wait(30) == 0

    assert line.startswith("2 DICOM objects at http://127.0.0.1:")


@pytest.mark.parametrize("moment", ["upload", "start"])
def test_a_signal_before_everything_is_stored_ends_the_archive_too(
    moment: str, make_series, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = make_series(np.zeros((4, 4, 2)), np.diag([-1.0, -1.0, 2.0, 1.0]))
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def noted(*words: object, **more: object) -> subprocess.Popen[bytes]:
        started.append(real(*words, **more))  # type: ignore[call-overload]
        return started[-1]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(orthanc.subprocess, "Popen", noted)
    monkeypatch.setattr(*((orthanc.Orthanc, "upload") if moment == "upload" else (orthanc, "_wait")), interrupted)
    before = signal.getsignal(signal.SIGTERM)

    try:
        assert orthanc.main([str(folder), "--port", str(free_port())]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)

    assert [process.poll() is not None for process in started] == [True]
