"""A small data set, and training processes that are cheap to start and may be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from medseg.phantoms.study import StudyOptions, write_dataset

PATIENCE = 240.0
"""Seconds until a test gives up; only a hang reaches them."""

BASE = """
import json, os, signal, sys, traceback
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
import medseg.cli, medseg.training.command, medseg.methods.caml.method, medseg.methods.supervised.method
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2), os.close(0)
    os.environ.update(order["env"])
    sys.argv = ["medseg", *order["argv"]]
    code = 0
    try:
        medseg.cli.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    with open(order["log"] + ".code", "w") as file:
        file.write(str(code))
    os._exit(code)
"""


@dataclass
class Child:
    """A process that runs one medseg command."""

    pid: int
    log: Path

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int | None:
        """Exit status; None where it was killed."""
        self.wait_until(lambda: not self.running)
        code = Path(f"{self.log}.code")
        return int(code.read_text()) if code.exists() else None

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Look again and again, as often as it takes to catch a run in the middle."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.running or condition(), f"it ended too early:\n{self.output}"
            assert time.monotonic() < end, self.output
            time.sleep(0.002)

    @property
    def running(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


class Starter:
    """Starts medseg commands as forks of a process that has imported everything, which takes far longer than a run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-c", BASE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._answer() == "ready"

    def __call__(self, argv: Sequence[object], **env: str) -> Child:
        assert self.process.stdin is not None
        self.count += 1
        log = self.folder / f"{self.count}.log"
        order = {"argv": [str(a) for a in argv], "log": str(log), "env": env}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Child(int(self._answer()), log)

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """`start(argv, NAME=value)` runs `medseg argv` in a process of its own."""
    starter = Starter(tmp_path_factory.mktemp("logs"))
    yield starter
    assert starter.process.stdin is not None
    starter.process.stdin.close()
    starter.process.wait()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small volumes, four of them labelled."""
    options = StudyOptions(shape=(32, 20, 16), spacings=((1.0, 1.0, 1.0),))
    return write_dataset(tmp_path_factory.mktemp("data") / "phantoms", 6, labelled=4, options=options)
