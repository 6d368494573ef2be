"""A real MONAI Label server for the time of a `with` block, which never outlives the simulation."""

from __future__ import annotations

import ctypes
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import medseg
from medseg.errors import MedsegError
from medseg.server.launch import RunningServer, check, command, environment, free_port, last_words, wait_until_ready

logger = logging.getLogger(__name__)

START_SECONDS = 600.0  # ours: a machine busy with other trainings took 157 s
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class ServerOptions:
    """How the server is started.

    Attributes:
        app: folder of the MONAI Label app.
        studies: the studies folder.
        log: everything the server prints is appended to it.
        conf: `--conf` keys and values.
        port: None: a free one.
    """

    app: Path
    studies: Path
    log: Path
    conf: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None


class ServerProcess:
    """Context manager: the server answers inside the block, and it and its jobs are gone after it, whatever happens.

    Raises (on entering): MedsegError: no app, a bad setting, or the server did not start; names its log.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.port = options.port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: RunningServer | None = None

    def __enter__(self) -> ServerProcess:
        options, started = self.options, time.monotonic()
        check(options.app, str(options.studies), options.conf)
        options.log.parent.mkdir(parents=True, exist_ok=True)
        with open(options.log, "ab") as log:
            process = subprocess.Popen(
                command(options.app, str(options.studies), "127.0.0.1", self.port, options.conf),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=options.log.parent,  # MONAI Label reads a file `.env` from the current folder
                env=environment(),
                start_new_session=True,  # Ctrl-C reaches us first, and we stop the whole group
                preexec_fn=_die_with_parent,
            )
        self._server = RunningServer(self.url, process, options.log)
        try:
            wait_until_ready(self._server, START_SECONDS)
        except MedsegError as error:
            self.stop()
            raise MedsegError(f"{error}; the server's log is {options.log}") from error
        except BaseException:
            self.stop()
            raise
        logger.info("server on %s after %.0f s", self.url, time.monotonic() - started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def alive(self) -> bool:
        """Whether the server runs."""
        return self._server is not None and self._server.process.poll() is None

    def stop(self) -> None:
        """End the server and everything it started."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def failure(self, what: str) -> MedsegError:
        """One sentence on what went wrong, with the server's last words where it has ended, and its log."""
        words = f" ({last_words(self.options.log)})" if not self.alive() else ""
        return MedsegError(f"{what}{words}; the server's log is {self.options.log}")


def default_app() -> Path:
    """`apps/medseg` of the source tree that the package is installed from."""
    return Path(medseg.__file__).resolve().parents[2] / "apps" / "medseg"


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the simulation is killed and cannot stop its server itself."""
    if sys.platform == "linux":
        library: Any = ctypes.CDLL(None)
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
