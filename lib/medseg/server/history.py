"""Previous versions of labels: `.medseg/history/<tag>/<image id>/<number>.<suffix>` beside a JSON with author and time.

Versions are numbered from 1 in the order in which they were replaced; nothing here deletes one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import NotFoundError
from medseg.files import read_json, write_atomically, write_json
from medseg.server.journal import now, plain


@dataclass(frozen=True)
class LabelVersion:
    """One previous version of a label.

    Attributes:
        number: 1, 2, 3, ... within one image and tag.
        file: the label as it was.
        author: who had saved it; empty where that is unknown.
        saved: when it had been saved (ISO 8601); empty where that is unknown.
        replaced: when it was replaced or removed.
        sha256: of the file.
        info: the label's info as it was.
    """

    number: int
    file: Path
    author: str
    saved: str
    replaced: str
    sha256: str
    info: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the path."""
        return {
            "number": self.number,
            "author": self.author,
            "saved": self.saved,
            "replaced": self.replaced,
            "sha256": self.sha256,
            "info": self.info,
        }


class LabelHistory:
    """The versions below one folder. Ids and tags that are passed in must have been checked.

    Args:
        root: the history folder; created when the first version is kept.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def keep(self, tag: str, image_id: str, label: Path, info: Mapping[str, Any]) -> LabelVersion:
        """Copy a label that is about to be replaced or removed. The caller holds the datastore's lock.

        Args:
            tag: the label's tag.
            image_id: its image.
            label: the present file.
            info: its present info; `author` and `saved` are taken from it.
        """
        versions = self.versions(tag, image_id)
        number = versions[-1].number + 1 if versions else 1
        suffix = label.name.removeprefix(image_id)
        file = copy_atomically(label, self._file(tag, image_id, number, suffix))
        version = LabelVersion(
            number=number,
            file=file,
            author=str(info.get("author") or ""),
            saved=str(info.get("saved") or ""),
            replaced=now(),
            sha256=file_sha256(file),
            info=plain(dict(info)),
        )
        # written last: a version without its JSON was cut short and does not count
        write_json(self._folder(tag, image_id) / f"{number:04d}.json", {**version.to_dict(), "suffix": suffix})
        return version

    def versions(self, tag: str, image_id: str) -> list[LabelVersion]:
        """All versions of a label, oldest first."""
        folder = self._folder(tag, image_id)
        files = [path for path in folder.glob("*.json") if path.stem.isdigit()] if folder.is_dir() else []
        values = [read_json(path) for path in files]
        return sorted((self._version(tag, image_id, value) for value in values), key=lambda version: version.number)

    def version(self, tag: str, image_id: str, number: int) -> LabelVersion:
        """One version.

        Raises:
            NotFoundError: there is no such version; names those there are.
        """
        versions = {version.number: version for version in self.versions(tag, image_id)}
        if number not in versions:
            known = ", ".join(map(str, versions)) or "none"
            raise NotFoundError(f"label {image_id} ({tag}) has no version {number}; versions: {known}")
        return versions[number]

    def _folder(self, tag: str, image_id: str) -> Path:
        return self.root / tag / image_id

    def _file(self, tag: str, image_id: str, number: int, suffix: str) -> Path:
        # ".label", so that a label that is itself JSON is not taken for a version's description
        return self._folder(tag, image_id) / f"{number:04d}.label{suffix}"

    def _version(self, tag: str, image_id: str, value: dict[str, Any]) -> LabelVersion:
        fields = {key: value[key] for key in ("number", "author", "saved", "replaced", "sha256", "info")}
        return LabelVersion(file=self._file(tag, image_id, value["number"], value["suffix"]), **fields)


def copy_atomically(source: Path, target: Path) -> Path:
    """Copy a file's content so that a reader sees the old target or the new one."""

    def write(temporary: Path) -> None:
        shutil.copyfile(source, temporary)

    return write_atomically(target, write)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
