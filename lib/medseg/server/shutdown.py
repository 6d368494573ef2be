"""Ending the server ends its jobs.

MONAI Label waits for its jobs when it is told to end: a server that got SIGTERM would hang about for the hours of a
training, closed to everybody. The jobs get the signal first; a training writes its checkpoint and ends, and the next
train request continues it.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from types import FrameType
from typing import Any

from monailabel.utils.async_tasks.utils import background_processes, background_tasks

logger = logging.getLogger(__name__)


def end_jobs_with_the_server() -> None:
    """Pass SIGTERM and SIGINT on to the jobs, then do what was done before. Only in a process's main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        if not getattr(before, "ends_jobs", False):
            signal.signal(number, _handler(before))


def stop_jobs() -> int:
    """Ask all running jobs to end and drop those that wait.

    Returns:
        Number of jobs that were running.
    """
    running = [process for processes in background_processes.values() for process in list(processes.values())]
    for task in [task for tasks in background_tasks.values() for task in tasks]:
        if task["status"] in ("SUBMITTED", "RUNNING"):
            task["status"] = "STOPPED"
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    return len(running)


def _handler(before: Any) -> Any:
    def handle(number: int, frame: FrameType | None) -> None:
        stop_jobs()
        if callable(before):
            before(number, frame)
        elif before is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    handle.ends_jobs = True  # type: ignore[attr-defined]
    return handle
