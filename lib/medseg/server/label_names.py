"""Which index a label name has: fixed by the app, or registered as names come."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from filelock import BaseFileLock

from medseg.errors import UnusableInputError
from medseg.files import read_json, write_json
from medseg.server.journal import Journal, make_entry

logger = logging.getLogger(__name__)

MAX_LABELS = 255  # viewers exchange masks as uint8
BACKGROUND = "background"
NUMBERED = re.compile(r"label_([1-9][0-9]{0,3})")
RESERVED = (
    "image",
    "label",
    "model",
    "device",
    "description",
)  # keys of MONAI Label's requests; deepedit mixes them up


class LabelNames(Protocol):
    """Numbers label names from 1 to N."""

    def labels(self) -> dict[str, int]:
        """All known names with their index."""

    def name_of(self, value: int) -> str | None:
        """The name of a value that a client saved without saying what it means; None where it can mean nothing."""

    def resolve(self, names: Sequence[str]) -> dict[str, int]:
        """The index of each name; 0 for the background.

        Raises:
            UnusableInputError: a name that is not known and cannot become so.
        """


class FixedLabels:
    """The labels an app was configured with. Names match whatever their case and surrounding blanks.

    Args:
        labels: name -> 1..N.
    """

    def __init__(self, labels: Mapping[str, int]) -> None:
        self._labels = dict(labels)

    def labels(self) -> dict[str, int]:
        """All known names with their index."""
        return dict(self._labels)

    def name_of(self, value: int) -> str | None:
        """The name with this index."""
        return next((name for name, index in self._labels.items() if index == value), None)

    def resolve(self, names: Sequence[str]) -> dict[str, int]:
        """The index of each name; 0 for the background.

        Raises:
            UnusableInputError: names the unknown ones and the known ones.
        """
        unknown = [name for name in names if match(name, self._labels) is None]
        if unknown:
            raise UnusableInputError(
                f"label name {_quoted(unknown)} is not known here; known names: {_quoted(self._labels)}; "
                "rename or empty the segment"
            )
        return {name: _index(name, self._labels) for name in names}


class LabelRegistry:
    """Labels of an app that has none configured: every new name gets the next number, once and for all.

    A value v without a name is called `label_v`; so that it keeps its number, the ones below it are registered with it.

    The numbering lies in `labels.json`; each new name is also a line of `label_names.jsonl`, from which a damaged
    `labels.json` is rebuilt.

    Args:
        folder: the datastore's service folder.
        lock: the datastore's lock.
    """

    def __init__(self, folder: Path, lock: BaseFileLock) -> None:
        self._file = Path(folder) / "labels.json"
        self._journal = Journal(Path(folder) / "label_names.jsonl")
        self._lock = lock

    def labels(self) -> dict[str, int]:
        """All known names with their index."""
        try:
            stored = read_json(self._file, default={})
            if isinstance(stored, dict) and sorted(stored.values()) == list(range(1, len(stored) + 1)):
                return stored
        except (ValueError, TypeError):
            pass
        logger.warning("%s is damaged and is rebuilt from its journal", self._file)
        return {entry["name"]: entry["index"] for entry in self._journal.read()[0]}

    def name_of(self, value: int) -> str | None:
        """The name with this index, or `label_<value>`."""
        known = next((name for name, index in self.labels().items() if index == value), None)
        return known or (f"label_{value}" if 1 <= value <= MAX_LABELS else None)

    def resolve(self, names: Sequence[str]) -> dict[str, int]:
        """The index of each name, registering new ones; 0 for the background.

        Raises:
            UnusableInputError: a reserved name, or too many labels.
        """
        with self._lock:
            known = self.labels()
            labels = dict(known)
            for name in names:
                if match(name, labels) is None:
                    self._add(name, labels)
            new = [name for name in labels if name not in known]
            if new:
                self._journal.append([make_entry("label_named", name=name, index=labels[name]) for name in new])
                write_json(self._file, labels)
        return {name: _index(name, labels) for name in names}

    def _add(self, name: str, labels: dict[str, int]) -> None:
        numbered = NUMBERED.fullmatch(name)
        last = int(numbered.group(1)) if numbered else 0
        below = range(len(labels) + 1, min(last, MAX_LABELS + 1))
        for new in [*(f"label_{index}" for index in below), name]:
            self._check_new(new, len(labels))
            labels.setdefault(new, len(labels) + 1)

    def _check_new(self, name: str, known: int) -> None:
        if not name.strip() or name.strip().casefold() in RESERVED:
            raise UnusableInputError(f"label name {name!r} cannot be used; reserved names: {', '.join(RESERVED)}")
        if known >= MAX_LABELS:
            raise UnusableInputError(f"label name {name!r} would be number {known + 1}; at most {MAX_LABELS} are kept")


def match(name: str, labels: Mapping[str, int]) -> str | None:
    """The known spelling of a name, or `background`; None where it is unknown."""
    if name in labels:
        return name
    folded = name.strip().casefold()
    same = [known for known in labels if known.strip().casefold() == folded]
    if len(same) == 1:
        return same[0]
    return BACKGROUND if folded == BACKGROUND else None


def _index(name: str, labels: Mapping[str, int]) -> int:
    return labels.get(match(name, labels) or BACKGROUND, 0)


def _quoted(names: Sequence[str] | Mapping[str, int]) -> str:
    return ", ".join(repr(name) for name in names)
