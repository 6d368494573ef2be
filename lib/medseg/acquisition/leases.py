"""Leases: no image is handed to two annotators at once.

An annotator holds the image that was handed out last, until it is labelled, the lease ends, or the annotator asks for
another one. Asking again without saving means "not this one": the image goes back to the others, and comes back to the
same annotator only when nothing else is left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.files import read_json, write_json


@dataclass(frozen=True)
class Lease:
    """Who holds an image, until when (seconds since 1970), and why it was handed out."""

    image: str
    client: str
    until: float
    strategy: str
    why: str
    value: float | None


class LeaseBook:
    """Leases of one study, kept in a JSON file so that a restart forgets none.

    Args:
        path: the file.
        minutes: how long a lease lasts.
        clock: seconds since 1970; replaced in tests.
    """

    def __init__(self, path: Path, minutes: float, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self.minutes = minutes
        self._clock = clock
        self._lock = threading.Lock()

    def take(self, ranked: Sequence[Any], client: str, strategy: str = "") -> Lease | None:
        """Lease the best image that nobody else holds.

        Args:
            ranked: unlabelled images, best first; objects with `id`, `value` and `why` (`strategies.Scored`).
            client: who asks; annotators without a name share the empty one.
            strategy: recorded with the lease.

        Returns:
            The lease, or None where all images are held by others.
        """
        with self._lock:
            book = self._read(keep={scored.id for scored in ranked})
            mine = [image for image, entry in book["leases"].items() if entry["client"] == client]
            for image in mine:
                del book["leases"][image]
                book["skipped"].append([client, image])
            free = [scored for scored in ranked if scored.id not in book["leases"]]
            passed = [image for who, image in book["skipped"] if who == client]
            fresh = [scored for scored in free if scored.id not in passed]
            choice = fresh[0] if fresh else min(free, key=lambda s: passed.index(s.id), default=None)
            if choice is not None:
                book["skipped"] = [entry for entry in book["skipped"] if entry != [client, choice.id]]
                until = self._clock() + 60 * self.minutes
                entry = {
                    "client": client,
                    "until": until,
                    "strategy": strategy,
                    "why": choice.why,
                    "value": choice.value,
                }
                book["leases"][choice.id] = entry
            write_json(self.path, book)
            return None if choice is None else Lease(image=choice.id, **book["leases"][choice.id])

    def of(self, image: str) -> Lease | None:
        """The lease on an image, where it is in force."""
        with self._lock:
            entry = self._read()["leases"].get(image)
        return Lease(image=image, **entry) if entry else None

    def active(self) -> list[Lease]:
        """All leases in force."""
        with self._lock:
            return [Lease(image=image, **entry) for image, entry in self._read()["leases"].items()]

    def release(self, image: str) -> None:
        """The image was labelled or removed."""
        with self._lock:
            book = self._read()
            book["leases"].pop(image, None)
            book["skipped"] = [entry for entry in book["skipped"] if entry[1] != image]
            write_json(self.path, book)

    def _read(self, keep: set[str] | None = None) -> dict[str, Any]:
        """The book without leases that ended and without images that are no longer unlabelled."""
        book = read_json(self.path, default={})
        now = self._clock()
        leases = {
            image: entry
            for image, entry in book.get("leases", {}).items()
            if entry["until"] > now and (keep is None or image in keep)
        }
        skipped = [entry for entry in book.get("skipped", []) if keep is None or entry[1] in keep]
        return {"leases": leases, "skipped": skipped}
