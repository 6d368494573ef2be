"""What people see while a run goes on: `progress.json`, log lines, and a bar on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tqdm import tqdm

from medseg.files import write_json
from medseg.training.run_folder import RunFolder

log = logging.getLogger(__name__)


class Progress:
    """Reports one run. Only the first process of several should have one.

    Args:
        folder: the run.
        iterations: total.
        epoch_iterations: iterations per epoch.
        every: least seconds between two writes of `progress.json`.
    """

    def __init__(self, folder: RunFolder, iterations: int, epoch_iterations: int, every: float = 1.0) -> None:
        self.folder, self.iterations, self.epoch_iterations, self.every = folder, iterations, epoch_iterations, every
        self.content: dict[str, Any] = {
            "state": "running",
            "phase": "starting",
            "epoch": 0,
            "epochs": -(-iterations // epoch_iterations),
            "iteration": 0,
            "iterations": iterations,
            "terms": {},
            "eta_seconds": None,
            "validation": None,
            "error": None,
            "skipped": [],
        }
        self._written = 0.0
        self._started = time.monotonic()
        self._start_iteration = 0
        self._said_speed = False
        self._bar: tqdm[Any] | None = None

    def reading(self, total: int) -> Callable[[], None]:
        """Images are read before the first iteration; call the result after each of them."""
        log.info("reading %d images", total)
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            self.content["phase"] = f"reading images, {done} of {total}"
            if done == total or time.monotonic() - self._written > self.every:
                self.write()

        return tick

    def start(self, iteration: int) -> None:
        """Training begins at `iteration` (not 0 when it resumes)."""
        self._started, self._start_iteration = time.monotonic(), iteration
        self.content["phase"] = "training"
        self._bar = tqdm(total=self.iterations, initial=iteration, unit="it", disable=not sys.stderr.isatty())
        self.iteration(iteration, {})

    def iteration(self, done: int, terms: dict[str, float]) -> None:
        """`done` iterations are finished; `terms` are the latest loss terms."""
        elapsed = time.monotonic() - self._started
        speed = (done - self._start_iteration) / elapsed if done > self._start_iteration else 0.0
        self.content.update(
            iteration=done,
            epoch=min(self.content["epochs"], -(-done // self.epoch_iterations)),
            eta_seconds=round((self.iterations - done) / speed, 1) if speed else None,
        )
        if terms:
            self.content["terms"] = {name: round(value, 5) for name, value in terms.items()}
            self._say_speed(done, speed)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            self._bar.set_postfix(self.content["terms"], refresh=False)
        if time.monotonic() - self._written > self.every:
            self.write()

    def _say_speed(self, done: int, speed: float) -> None:
        """One early line, as the first epoch may take an hour."""
        if self._said_speed or not speed:
            return
        self._said_speed = True
        log.info("iteration %d/%d: %s, %.3g s per iteration, %s", done, self.iterations, self._terms(), 1 / speed,
                 self._time_left())  # fmt: skip

    def _terms(self) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in self.content["terms"].items())

    def _time_left(self) -> str:
        seconds = self.content["eta_seconds"]
        return f"{duration(seconds)} left" if seconds is not None else ""

    def seconds(self, before: float) -> float:
        """Seconds of training so far, `before` those of earlier starts."""
        return before + time.monotonic() - self._started

    def epoch(self) -> None:
        """Log the line of a finished epoch."""
        c = self.content
        shown = f", validation {c['validation']['quality']:.4f}" if c["validation"] else ""
        log.info("epoch %d/%d iteration %d/%d: %s%s, %s", c["epoch"], c["epochs"], c["iteration"], c["iterations"],
                 self._terms(), shown, self._time_left())  # fmt: skip
        self.write()

    def update(self, **changes: Any) -> None:
        """Change entries and write at once."""
        self.content.update(changes)
        self.write()

    def end(self, state: str, error: str | None = None, passing: bool = False) -> None:
        """The run ended: "done", "stopped" or "failed"; `passing`: for a reason that may be gone later."""
        if self._bar is not None:
            self._bar.close()
        self.update(
            phase="ended", state=state, error=error, passing=passing, eta_seconds=0.0 if state == "done" else None
        )

    def write(self) -> None:
        """Write `progress.json`."""
        self._written = time.monotonic()
        self.content["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.folder.progress, self.content)


def duration(seconds: float) -> str:
    """Seconds as people say them: `95 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
