"""An Orthanc archive on this machine, for trying things and for tests: `python -m medseg.server.dicom.orthanc --help`.

Needs the Debian packages `orthanc` and `orthanc-dicomweb`. It listens on the loopback interface only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from medseg.errors import MedsegError, NotFoundError
from medseg.server.dicom.phantoms import write_phantoms
from medseg.server.launch import check_port, free_port, last_words

logger = logging.getLogger(__name__)

PROGRAMS = ("Orthanc", "/usr/sbin/Orthanc")
PLUGINS = ("/usr/share/orthanc/plugins/libOrthancDicomWeb.so", "/usr/lib/orthanc/plugins/libOrthancDicomWeb.so")
UPLOAD_SECONDS = 60.0  # ours: for one file, on loopback
START_SECONDS = 60.0  # ours: up in less than 4 s on a quiet machine


@dataclass
class Orthanc:
    """A running archive.

    Attributes:
        root: of its own REST interface.
        process: the program.
    """

    root: str
    process: subprocess.Popen[bytes]

    @property
    def dicomweb(self) -> str:
        """What `--studies` wants."""
        return f"{self.root}/dicom-web"

    def upload(self, folder: Path) -> int:
        """Store all DICOM files below a folder; how many there were. One that is refused is told and left out.

        Raises:
            NotFoundError: no such folder, or no DICOM file in it.
            MedsegError: the archive is gone.
        """
        if not Path(folder).is_dir():
            raise NotFoundError(f"folder {folder} does not exist; give the folder of your DICOM files")
        count = 0
        for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            content = path.read_bytes()
            if content[128:132] == b"DICM":
                count += self._post(path, content)
        if not count:
            raise NotFoundError(f"no DICOM file (part 10, with a preamble) below {folder} was stored")
        return count

    def _post(self, path: Path, content: bytes) -> bool:
        try:
            answer = requests.post(f"{self.root}/instances", data=content, timeout=UPLOAD_SECONDS)
        except requests.RequestException as error:
            raise MedsegError(f"the archive was lost while {path} was stored ({type(error).__name__})") from error
        if not answer.ok:
            logger.warning("%s is not stored; the archive answered with HTTP status %d", path, answer.status_code)
        return answer.ok

    def clear(self) -> None:
        """Remove everything that is stored."""
        for patient in requests.get(f"{self.root}/patients", timeout=60).json():
            requests.delete(f"{self.root}/patients/{patient}", timeout=60).raise_for_status()

    def remove_series(self, uid: str) -> None:
        """Remove one series by its Series Instance UID."""
        query = json.dumps({"Level": "Series", "Query": {"SeriesInstanceUID": uid}})
        for series in requests.post(f"{self.root}/tools/find", data=query, timeout=60).json():
            requests.delete(f"{self.root}/series/{series}", timeout=60).raise_for_status()

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


def missing_parts() -> str:
    """What is not installed, as a sentence; empty where everything is there."""
    if _program() is None:
        return "Orthanc is not installed; apt-get install orthanc orthanc-dicomweb"
    if _plugin() is None:
        return "Orthanc's DICOMweb plugin is not installed; apt-get install orthanc-dicomweb"
    return ""


def spawn(storage: Path, port: int | None = None) -> Orthanc:
    """Start an archive and wait for its first answer.

    Args:
        storage: folder of its files; created where it does not exist.
        port: None: a free one.

    Raises:
        NotFoundError: Orthanc is not installed.
        ConflictError: the port is taken, by Debian's own Orthanc service perhaps.
        MedsegError: it ended, or did not answer.
    """
    if missing := missing_parts():
        raise NotFoundError(missing)
    port = port or free_port()
    check_port("127.0.0.1", port)
    storage.mkdir(parents=True, exist_ok=True)
    config = storage / "orthanc.json"
    config.write_text(json.dumps(_configuration(storage, port), indent=2), encoding="utf-8")
    log = storage / "orthanc.log"
    with open(log, "ab") as output:
        process = subprocess.Popen([str(_program()), str(config)], stdout=output, stderr=subprocess.STDOUT)
    archive = Orthanc(f"http://127.0.0.1:{port}", process)
    try:
        _wait(archive, log)
    except BaseException:
        archive.stop()
        raise
    return archive


def _wait(archive: Orthanc, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        answered = False
        with contextlib.suppress(requests.RequestException):
            answered = requests.get(f"{archive.dicomweb}/studies", params={"limit": "1"}, timeout=5).ok
        if archive.process.poll() is not None:  # whoever answered, it was not this one
            raise MedsegError(f"Orthanc ended while starting: {last_words(log)}")
        if answered:
            return
        time.sleep(0.1)
    raise MedsegError(f"Orthanc did not answer within {START_SECONDS:g} s; see {log}")


@contextlib.contextmanager
def running(storage: Path, port: int | None = None) -> Iterator[Orthanc]:
    """An archive for the duration of a `with` block; see `spawn`."""
    archive = spawn(storage, port)
    try:
        yield archive
    finally:
        archive.stop()


def _program() -> str | None:
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def _plugin() -> str | None:
    return next((path for path in PLUGINS if Path(path).exists()), None)


def _configuration(storage: Path, port: int) -> dict[str, object]:
    return {
        "Name": "medseg",
        "StorageDirectory": str(storage / "files"),
        "IndexDirectory": str(storage / "files"),
        "Plugins": [_plugin()],
        "HttpPort": port,
        "HttpServerEnabled": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "OverwriteInstances": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def main(words: Sequence[str] | None = None) -> int:
    """The command behind `make archive`."""
    parser = argparse.ArgumentParser(
        prog="python -m medseg.server.dicom.orthanc", description="A DICOMweb archive here."
    )
    parser.add_argument("folder", type=Path, nargs="?", help="DICOM files to store first; none: a few phantoms")
    parser.add_argument("--storage", type=Path, help="keep the archive here; default: a temporary folder")
    parser.add_argument("--port", type=int, default=8042)
    arguments = parser.parse_args(words)
    try:
        return _serve(arguments.folder, arguments.storage, arguments.port)
    except MedsegError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _serve(folder: Path | None, storage: Path | None, port: int) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # from here on, either signal ends the archive as well
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        storage = storage or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medseg-archive-")))
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medseg-phantoms-")))
            write_phantoms(folder)
        archive = stack.enter_context(running(storage, port))
        count = archive.upload(folder)
        sys.stdout.write(
            f"{count} DICOM objects at {archive.dicomweb}\nmake serve STUDIES={archive.dicomweb}\nCtrl-C ends it\n"
        )
        sys.stdout.flush()
        return archive.process.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
