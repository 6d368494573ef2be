"""The files of one method's models: numbered version folders, the pointer to the served one, and rejected candidates.

    champion.json              {"version": n}: the truth for serving, replaced atomically
    last_number.json           {"version": n}: numbers are given once, also when versions are pruned or a writer dies
    versions/<n>/              model.safetensors, config.json, metrics.json, version.json; whole or not there
    rejected/<stamp>.json      candidates that the gate turned down: reason and metrics, no weights

Reading needs no lock. Writers hold `VersionStore.lock()`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg.files import read_json, write_json
from medseg.training.file_lock import file_lock

WEIGHTS, CONFIG, METRICS, ABOUT = "model.safetensors", "config.json", "metrics.json", "version.json"


class VersionStore:
    """Versions of one method's model below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = folder / "versions"

    def lock(self) -> AbstractContextManager[None]:
        """The lock that writers hold."""
        return file_lock(self.folder / ".lock")

    def numbers(self) -> list[int]:
        """Numbers of the versions that are kept, ascending."""
        if not self.versions.is_dir():
            return []
        return sorted(int(path.name) for path in self.versions.iterdir() if path.name.isdigit())

    def path(self, number: int) -> Path:
        """Folder of a version."""
        return self.versions / str(number)

    def champion(self) -> int | None:
        """Number of the version being served."""
        number = read_json(self.folder / "champion.json", default={}).get("version")
        return None if number is None else int(number)

    def point_to(self, number: int) -> None:
        """Serve another version from now on."""
        pointer = {"version": number, "previous": self.champion(), "since": now()}
        write_json(self.folder / "champion.json", pointer)

    def add(self, run: Path, metrics: dict[str, Any], note: str) -> int:
        """Copy a run's model into a new version, or find the one that already holds it; its number."""
        self.versions.mkdir(parents=True, exist_ok=True)
        for leftover in self.versions.glob(".*"):  # of a writer that died: we hold the lock, nobody works on it
            shutil.rmtree(leftover)
        digest = _digest(run)
        about = {"created": now(), "note": note, "digest": digest, "run": str(run)}
        number = next((n for n in self.numbers() if self._about(n).get("digest") == digest), None)
        if number is not None:
            write_json(self.path(number) / METRICS, metrics)
            write_json(self.path(number) / ABOUT, {**about, "created": self._about(number)["created"]})
            return number
        number = self._next_number()
        temporary = self.versions / f".new-{number}"
        temporary.mkdir()
        for name in (WEIGHTS, CONFIG):
            _copy(run / name, temporary / name)
        write_json(temporary / METRICS, metrics)
        write_json(temporary / ABOUT, about)
        temporary.rename(self.path(number))
        _sync_folder(self.versions)
        return number

    def holds(self, number: int, run: Path) -> bool:
        """Whether a version is the model of a run folder."""
        complete = (run / WEIGHTS).is_file() and (run / CONFIG).is_file()
        return complete and self._about(number).get("digest") == _digest(run)

    def prune(self, keep: int) -> None:
        """Delete all but the newest versions and the champion."""
        champion = self.champion()
        for number in self.numbers()[:-keep]:
            if number != champion:
                trash = self.versions / f".old-{number}"
                self.path(number).rename(trash)  # gone at once for readers, also if the deletion is cut short
                shutil.rmtree(trash)

    def add_rejection(self, record: dict[str, Any], keep: int) -> None:
        """Write down a rejected candidate."""
        folder = self.folder / "rejected"
        write_json(folder / f"{re.sub('[^0-9]', '', record['created'])}.json", record)
        for path in sorted(folder.glob("*.json"))[:-keep]:
            path.unlink()

    def rejections(self) -> dict[str, dict[str, Any]]:
        """Rejected candidates by key, oldest first."""
        return {path.stem: read_json(path) for path in sorted((self.folder / "rejected").glob("*.json"))}

    def read(self, number: int) -> dict[str, Any]:
        """What is written down of a version: `metrics`, `config`, `created`, `note`."""
        about, folder = self._about(number), self.path(number)
        return {
            "metrics": read_json(folder / METRICS, default={}),
            "config": read_json(folder / CONFIG, default={}),
            "created": about.get("created", ""),
            "note": about.get("note", ""),
        }

    def _about(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.path(number) / ABOUT, default={})
        return found

    def _next_number(self) -> int:
        counter = self.folder / "last_number.json"
        number = max([0, *self.numbers(), read_json(counter, default={}).get("version", 0)]) + 1
        write_json(counter, {"version": number})
        return number


def finite(value: Any) -> Any:
    """A JSON value with null for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def read_config(run: Path) -> dict[str, Any]:
    """A run folder's `config.json`; empty where it cannot be read, because a broken candidate has to be told of too."""
    try:
        found = read_json(run / CONFIG, default={})
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def now() -> str:
    """Present time, ISO."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _digest(run: Path) -> str:
    digest = hashlib.sha256()
    for name in (WEIGHTS, CONFIG):
        with open(run / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
