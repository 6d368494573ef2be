"""The journal: every change of the datastore as one line of JSON, appended and flushed before it is acknowledged.

Lines are never rewritten. Each line tells a whole change, so that the index can be rebuilt from the journal alone, and
so that processes learn each other's changes by reading on from where they stopped.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
"""One change: `time`, `change` and the fields of that change (see `medseg.server.index.IndexState.apply`)."""


class Journal:
    """An append-only file of JSON lines. Writers must hold the datastore's lock; readers need none.

    Args:
        path: the file; created with the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def size(self) -> int:
        """Bytes written so far."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries and flush them to the disk. If that fails, the file is as before."""
        text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(handle).st_size
            torn = before > 0 and os.pread(handle, 1, before - 1) != b"\n"
            try:
                _write_all(handle, (("\n" if torn else "") + text).encode())  # a torn line must not swallow this one
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)

    def read(self, offset: int = 0) -> tuple[list[Entry], int]:
        """Entries from a byte offset on, and the offset to read on from.

        A last line without its end (the writer was killed, or is still writing) is left for the next call; a line that
        is no JSON is skipped with a warning. A missing file has nothing new, whatever was read of it before.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                content = file.read()
        except FileNotFoundError:
            return [], offset
        whole = content[: content.rfind(b"\n") + 1]
        entries = [entry for line in whole.splitlines() if (entry := self._parse(line)) is not None]
        return entries, offset + len(whole)

    def _parse(self, line: bytes) -> Entry | None:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("change"), str):
            return entry
        if line.strip():
            logger.warning("journal %s: a damaged line of %d bytes is skipped", self.path, len(line))
        return None


def make_entry(change: str, **fields: Any) -> Entry:
    """An entry with the present time (UTC)."""
    return {"time": now(), "change": change, **plain(fields)}


def now() -> str:
    """The present time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def plain(value: Any) -> Any:
    """`value` in terms of JSON: numpy and torch numbers become numbers, arrays lists, NaN and infinity null.

    Whatever JSON has no word for becomes its text, as MONAI Label does it.
    """
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, torch.Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool | int | type(None)):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]
