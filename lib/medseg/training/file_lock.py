"""A lock between processes and threads: flock on a file, which the kernel frees however its holder ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg.errors import ConflictError

_POLL_SECONDS = 0.05


@contextmanager
def file_lock(path: Path, timeout: float = 60.0) -> Iterator[None]:
    """Hold the lock for the duration of a `with` block.

    Args:
        path: the lock file; it is created, stays, and never holds data.
        timeout: seconds to wait for another holder.

    Raises:
        ConflictError: somebody else held the lock for the whole time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ConflictError(
                        f"{path} was held by another process for {timeout:g} s; wait until it is done, then try again"
                    ) from None
                time.sleep(_POLL_SECONDS)
        yield  # closing the file frees the lock
