"""Starts scoring by itself: once after a promotion, and once when images came to the pool."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from medseg.server.tasks.scoring import MedsegScoring

logger = logging.getLogger(__name__)

POLL_SECONDS = 5.0  # ours: a promotion waits for the next image anyway
FULL_LOOK_EVERY = 12  # ours: image files that were changed in place are noticed within a minute


class AutoScoring:
    """Watches models and pool, and starts a scoring job when scores are missing.

    A job is started when two looks in a row see the same work and no job is running, so a folder that is being filled
    is scored once, when it is full.

    Args:
        tasks: the scoring tasks by method.
        is_busy: whether a training or scoring job runs.
        start: starts the scoring job of a method.
    """

    def __init__(
        self, tasks: Mapping[str, MedsegScoring], is_busy: Callable[[], bool], start: Callable[[str], object]
    ) -> None:
        self._tasks, self._is_busy, self._start = tasks, is_busy, start
        self._seen: dict[str, tuple[int | None, frozenset[str]]] = {}
        self._started: dict[str, tuple[int | None, frozenset[str]]] = {}
        self._nothing_due: dict[str, tuple[object, int]] = {}
        self._looks = 0
        self._stop = threading.Event()

    def look(self) -> list[str]:
        """One look.

        Returns:
            The methods whose scoring was started.
        """
        started = []
        self._looks += 1
        for name, task in self._tasks.items():
            version, pool = task.state()
            work = (version, self._due(name, task, (version, pool)))
            settled = self._seen.get(name) == work
            self._seen[name] = work
            if work[1] and settled and not self._was_started(name, work) and not self._is_busy():
                self._started[name] = work
                logger.info("%d images wait for a score by %s: starting scoring", len(work[1]), name)
                self._start(name)
                started.append(name)
        return started

    def _due(self, name: str, task: MedsegScoring, state: object) -> frozenset[str]:
        """What is to be scored. Asking looks at every image file, so an answer of nothing holds for some looks."""
        known, look = self._nothing_due.get(name, (None, 0))
        if known == state and self._looks - look < FULL_LOOK_EVERY:
            return frozenset()
        due = frozenset(task.due())
        if not due:
            self._nothing_due[name] = (state, self._looks)
        return due

    def _was_started(self, name: str, work: tuple[int | None, frozenset[str]]) -> bool:
        """Whether a job was started for all of it: one that failed or was stopped by hand is not repeated for ever."""
        version, images = self._started.get(name, (None, frozenset()))
        return version == work[0] and work[1] <= images

    def run(self, seconds: float = POLL_SECONDS) -> None:
        """Look for ever, in a thread of its own."""

        def loop() -> None:
            while not self._stop.wait(seconds):
                try:
                    self.look()
                except Exception:
                    logger.exception("looking for images to score failed; trying again")

        threading.Thread(target=loop, name="auto-scoring", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
