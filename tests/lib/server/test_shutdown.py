from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from monailabel.utils.async_tasks.utils import background_processes, background_tasks

from medseg.server.shutdown import end_jobs_with_the_server, stop_jobs


@pytest.fixture
def job() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    background_processes["train"] = {"1": process}
    background_tasks["train"] = [{"id": "1", "status": "RUNNING"}, {"id": "2", "status": "SUBMITTED"}]
    yield process
    background_processes.clear()
    background_tasks.clear()
    process.kill()
    process.wait()


def test_running_jobs_are_asked_to_end_and_waiting_ones_dropped(job: subprocess.Popen[bytes]) -> None:
    assert stop_jobs() == 1

    assert job.wait(10) == -signal.SIGTERM
    assert [task["status"] for task in background_tasks["train"]] == ["STOPPED", "STOPPED"]


def test_the_servers_own_handler_still_runs_and_is_wrapped_once(job: subprocess.Popen[bytes]) -> None:
    seen: list[int] = []
    old = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    term = signal.getsignal(signal.SIGTERM)
    try:
        end_jobs_with_the_server()
        end_jobs_with_the_server()
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, old)
        signal.signal(signal.SIGTERM, term)

    assert seen == [signal.SIGINT]
    assert job.wait(10) == -signal.SIGTERM


def test_without_jobs_nothing_happens() -> None:
    background_processes.clear()
    background_tasks.clear()

    assert stop_jobs() == 0
