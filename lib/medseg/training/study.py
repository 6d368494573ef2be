"""The name under which a study's models are kept."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


def study_key(studies: str) -> str:
    """Folder name for a studies folder or archive URL: its last part and six digits of a hash of its whole place.

    Two studies never share models by accident, and a person still recognises which is which.
    """
    remote = "://" in studies
    place = studies.rstrip("/") if remote else str(Path(studies).expanduser().resolve())
    name = re.sub(r"[^a-z0-9]+", "-", place.rsplit("/", 1)[-1].lower()).strip("-") or "study"
    return f"{name[:40]}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"
