"""Which medseg made a result: the version number stays for months, the sources do not."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

LENGTH = 12
"""Characters of the hash; as many as git shows of a commit in large projects."""


@functools.cache
def code_hash() -> str:
    """Short hash of all Python files of the installed package, read once per process."""
    return hash_of(Path(__file__).parent)


def hash_of(folder: Path) -> str:
    """Short hash of the names and contents of all Python files below a folder, wherever it lies."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()[:LENGTH]
