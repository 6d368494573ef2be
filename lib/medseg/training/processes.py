"""Other processes and signals, as a run sees them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def gone(pids: Iterable[int]) -> str | None:
    """Why to stop, where one of the processes that a run works for is gone; None while all are there."""
    dead = next((pid for pid in pids if not alive(pid)), None)
    return None if dead is None else f"process {dead}, which asked for it, is gone"


@contextlib.contextmanager
def stop_signals(stop_because: Callable[[str], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C call `stop_because` with the reason instead of ending the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        stop_because(f"it received {signal.Signals(number).name}")

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
