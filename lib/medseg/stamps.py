"""Stamps: what files and cases looked like when something was made of them, so that a change is noticed.

Size and modification time, as `make` does: hashing volumes at every look would take minutes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg.cases import Case


def file_stamp(path: Path | None) -> str:
    """Size and modification time of a file; empty where there is none."""
    try:
        status = Path(path).stat() if path is not None else None
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}" if status else ""


def case_stamp(case: Case) -> str:
    """Short text that changes with any file of a case, its weak labels, its domain and the names of its values.

    Not with where the files lie, nor with the case's id, patient and data set.
    """
    files = [file_stamp(path) for path in (case.image, case.label, case.regions, case.organ)]
    weak = case.weak.model_dump(mode="json") if case.weak else None
    names = {str(value): name for value, name in case.names.items()} if case.names else None
    text = json.dumps([files, weak, case.domain, names], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def case_stamps(cases: Sequence[Case]) -> dict[str, str]:
    """Case id -> `case_stamp`."""
    return {case.id: case_stamp(case) for case in cases}


def changed_cases(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Ids of the cases that both know and that differ."""
    return [identifier for identifier, stamp in now.items() if before.get(identifier, stamp) != stamp]
