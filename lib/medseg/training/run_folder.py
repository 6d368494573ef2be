"""One training run on disk: its files, and the lock that keeps a second process out."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg.errors import ConflictError


class RunFolder:
    """Paths of a run.

    Attributes:
        checkpoint: everything needed to resume.
        progress: what `/info/` and people read while it runs.
        metrics: results.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.pt"
        self.progress = self.path / "progress.json"
        self.metrics = self.path / "metrics.json"
        self.weights = self.path / "model.safetensors"
        self.config = self.path / "config.json"
        self.split = self.path / "split.json"

    @property
    def finished(self) -> bool:
        """Whether a run came to its end here."""
        return self.metrics.exists() and self.weights.exists()

    def forget(self) -> None:
        """Remove what an earlier run would be resumed from. Its model stays until this run's replaces it."""
        previous = self.checkpoint.with_suffix(self.checkpoint.suffix + ".previous")
        for path in (self.checkpoint, previous, self.metrics):
            path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run. The lock belongs to the open file, so it vanishes with the process, however it dies.

        Raises:
            ConflictError: another live process holds the run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "run.lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise ConflictError(
                    f"run folder {self.path} is in use by process {holder}; wait for it or choose another --out"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
