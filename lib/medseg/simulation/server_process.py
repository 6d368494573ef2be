"""A real MONAI Label server in a process group of its own, which never outlives the simulation."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any

import medseg
from medseg.errors import MedsegError, NotFoundError

logger = logging.getLogger(__name__)

START_SECONDS = 300.0  # ours: the first import on a cold disk takes a minute
STOP_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class ServerOptions:
    """How the server is started.

    Attributes:
        app: folder of the MONAI Label app.
        studies: the studies folder.
        conf: `--conf` keys and values.
        log: everything the server prints.
        port: None: a free one.
    """

    app: Path
    studies: Path
    log: Path
    conf: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None


class ServerProcess:
    """Context manager: the server answers inside the block and is gone after it, whatever happens in it."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.port = options.port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServerProcess:
        options = self.options
        if not (options.app / "main.py").is_file():
            raise NotFoundError(f"{options.app} holds no MONAI Label app (main.py); name the folder with --app")
        command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(options.app)]
        command += ["--studies", str(options.studies), "--host", "127.0.0.1", "--port", str(self.port)]
        command += [word for key, value in options.conf.items() for word in ("--conf", key, value)]
        options.log.parent.mkdir(parents=True, exist_ok=True)
        with open(options.log, "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=options.log.parent,  # MONAI Label reads a file `.env` from the current folder
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C must reach us first, and we stop the whole group
                preexec_fn=_die_with_parent,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the server and everything it started."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            _signal_group(process.pid, number)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                process.poll()  # reaps it
                if not _group_alive(process.pid):
                    return
                time.sleep(0.05)
        logger.warning("the server's process group %d did not end", process.pid)

    def last_error(self) -> str:
        """The last line of the log that tells of an error; empty where there is none."""
        try:
            lines = self.options.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        found = [line.strip() for line in lines if "Error" in line or "ERROR" in line]
        return found[-1][:300] if found else ""

    def failure(self, what: str) -> MedsegError:
        """One sentence on what went wrong, with the server's last error and its log."""
        error = self.last_error()
        return MedsegError(f"{what}{f' ({error})' if error else ''}; the server's log is {self.options.log}")

    def _wait_until_ready(self) -> None:
        started = time.monotonic()
        while time.monotonic() - started < START_SECONDS:
            if not self.alive():
                raise self.failure("the server ended while it started")
            if self._answers():
                logger.info("server on %s after %.0f s", self.url, time.monotonic() - started)
                return
            time.sleep(0.3)
        raise self.failure(f"the server did not answer on {self.url} within {START_SECONDS:g} s")

    def _answers(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/info/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def free_port() -> int:
    """A port on 127.0.0.1 that nobody uses at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def default_app() -> Path:
    """`apps/medseg` of the source tree the package is installed from."""
    return Path(medseg.__file__).resolve().parents[2] / "apps" / "medseg"


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the simulation is killed and cannot stop its server itself."""
    if sys.platform == "linux":
        library: Any = ctypes.CDLL(None)
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
