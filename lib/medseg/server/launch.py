"""Starting the server: the command MONAI Label wants, the environment it needs, and servers for tests."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import ConflictError, MedsegError, NotFoundError
from medseg.server.settings import AppSettings
from medseg.training.device import pick_device

logger = logging.getLogger(__name__)

OTHERS = ("xnat", "dsa")  # MONAI_LABEL_DATASTORE: archives that MONAI Label itself talks to
START_SECONDS = 180.0  # ours: 8 to 25 s on two cores; a first start compiles bytecode, and disks can be slow


def command(app_dir: Path, studies: str, host: str, port: int, conf: Mapping[str, str]) -> list[str]:
    """The start command. MONAI Label's own shell script loses words at spaces; its module does not."""
    words = [sys.executable, "-m", "monailabel.main", "start_server"]
    words += ["--app", str(Path(app_dir).absolute()), "--studies", _absolute(studies)]
    words += ["--host", host, "--port", str(port)]
    for key, value in conf.items():
        words += ["--conf", key, value]
    return words


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of the server and its jobs.

    MONAI Label fails on jobs without a PYTHONPATH, downloads `itkimage2segimage` unless it is on the PATH, scores after
    every click, and tracks into a store that current versions of MLflow refuse.
    """
    env = dict(os.environ if base is None else base)
    env["MONAI_LABEL_AUTO_UPDATE_SCORING"] = "false"
    env["MONAI_LABEL_TRACKING_ENABLED"] = "false"
    env.setdefault("PYTHONPATH", "")
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    return env


def check(app_dir: Path, studies: str, conf: Mapping[str, str]) -> None:
    """Find mistakes before the slow start.

    Raises:
        MedsegError: no app, no studies folder, one that cannot be written, no archive at the URL, or a bad setting.
    """
    if not (Path(app_dir) / "main.py").is_file():
        raise NotFoundError(f"{app_dir} holds no app (main.py); give the folder apps/medseg")
    if "://" not in studies and not Path(studies).is_dir():
        raise NotFoundError(f"studies folder {studies} does not exist; create it and put images in it")
    read_only = os.environ.get("MONAI_LABEL_DATASTORE_READ_ONLY", "").lower() in ("true", "1")
    if "://" not in studies and not read_only and not os.access(studies, os.W_OK):
        raise MedsegError(
            f"studies folder {studies} cannot be written, but labels are kept there; give write permission, serve a "
            "folder of your own with links to the images, or only look: MONAI_LABEL_DATASTORE_READ_ONLY=true"
        )
    settings = AppSettings.from_conf(conf)
    if settings.device:
        pick_device(settings.device)
    if "://" in studies and os.environ.get("MONAI_LABEL_DATASTORE", "").lower() not in OTHERS:
        from medseg.server.dicom.catalogue import check_archive  # needs MONAI Label, slow to import

        check_archive(studies.strip().rstrip("/"), Path(settings.model_dir or Path(app_dir) / "model").absolute())


def start_server(
    app_dir: Path,
    studies: str,
    host: str,
    port: int,
    conf: Mapping[str, str],
    announce: Callable[[], None] = lambda: None,
) -> None:
    """Become the server: replaces this process, so that signals and exit codes are the server's own.

    Args:
        app_dir: the app.
        studies: folder or URL.
        host: address to listen on.
        port: port to listen on.
        conf: settings of the app.
        announce: called when all is checked, before the server starts.

    Raises:
        MedsegError: a mistake in the arguments, or the port is taken.
    """
    check(app_dir, studies, conf)
    check_port(host, port)
    words = command(app_dir, studies, host, port, conf)
    announce()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(words[0], words, environment())


@dataclass
class RunningServer:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, seconds: float = 15.0) -> None:
        """Ask it to end; kill it and its jobs where it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                logger.warning("the server did not end within %g s and is killed", seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # jobs are in the server's process group
        self.process.wait()


@contextlib.contextmanager
def running_server(
    app_dir: Path, studies: str, conf: Mapping[str, str], log: Path, port: int | None = None
) -> Iterator[RunningServer]:
    """A server on a free port of this machine for the duration of a `with` block.

    Args:
        app_dir: the app.
        studies: folder or URL.
        conf: settings.
        log: file for everything it prints.
        port: None: a free one.

    Raises:
        MedsegError: it ended while starting; quotes its last words.
    """
    server = spawn_server(app_dir, studies, conf, log, port)
    try:
        wait_until_ready(server)
        yield server
    finally:
        server.stop()


def spawn_server(
    app_dir: Path, studies: str, conf: Mapping[str, str], log: Path, port: int | None = None
) -> RunningServer:
    """Start a server and return at once; see `wait_until_ready`."""
    check(app_dir, studies, conf)
    port = port or free_port()
    words = command(app_dir, studies, "127.0.0.1", port, conf)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )
    return RunningServer(f"http://127.0.0.1:{port}", process, log)


def wait_until_ready(server: RunningServer, seconds: float = START_SECONDS) -> None:
    """Wait for the first answer.

    Raises:
        MedsegError: the server ended, or did not answer in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise MedsegError(f"the server ended while starting: {last_words(server.log)}")
        try:
            with urllib.request.urlopen(f"{server.url}/info/", timeout=30) as reply:
                json.load(reply)
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise MedsegError(f"the server did not answer within {seconds:g} s; see {server.log}")


def last_words(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line and not line.startswith("File")]
    return (telling or lines or ["it said nothing"])[-1][-500:]


def free_port() -> int:
    """A TCP port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Whether a server could listen there.

    Raises:
        ConflictError: it could not.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConflictError(
                f"cannot listen on {host} port {port} ({error.strerror}); choose another --port or --host "
                "(make serve: PORT=, HOST=)"
            ) from error


def _absolute(studies: str) -> str:
    return studies if "://" in studies else str(Path(studies).absolute())
