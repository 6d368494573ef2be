"""The folders of a study: where images, labels and the datastore's own files lie, and what is there at present.

Two layouts are known. *Flat*: images beside the index, labels in `labels/<tag>/`, as MONAI Label has it. *Plain*:
`images/` and `labels/` (and `regions/`) with equal file names, as public data sets come. There, the user's own files in
`labels/` count as final labels where they lie; they are never changed, moved or deleted. Corrections go to
`labels/final/` and take precedence.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.cases import IMAGE_SUFFIXES, image_suffix
from medseg.errors import MedsegError
from medseg.server.ids import LABEL_SUFFIXES, is_name

SERVICE_FOLDER = ".medseg"
INDEX_FILE = "datastore_v2.json"
WARM_SECONDS = 2.0  # ours: a folder changed so recently may change again within the granularity of its time stamp

Known = Mapping[str, Mapping[str, Any]]


@dataclass
class Scan:
    """The files of one moment.

    Attributes:
        images: image id -> file.
        labels: tag -> image id -> file.
        problems: sentences on files that are not used, and why.
    """

    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, dict[str, Path]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class StudyFolders:
    """Paths inside one studies folder. Ids and tags that are passed in must have been checked.

    Args:
        root: the studies folder; created where it does not exist.
        suffixes: image suffixes to look for.

    Raises:
        MedsegError: the folder is a file, or cannot be created.
    """

    def __init__(self, root: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> None:
        self.root = Path(os.path.abspath(Path(root).expanduser()))  # links stay: an image keeps the name it has here
        self.suffixes = tuple(suffix.lower() for suffix in suffixes)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MedsegError(f"studies folder {self.root} cannot be used: {error.strerror}; give a folder") from error
        self.plain = self._is_plain()
        self.images_dir = self.root / "images" if self.plain else self.root
        self.labels_dir = self.root / "labels"
        self.in_place = {"final": self.labels_dir, "regions": self.root / "regions"} if self.plain else {}
        self.service = self.root / SERVICE_FOLDER
        self.index = self.root / INDEX_FILE

    def image_path(self, image_id: str, suffix: str) -> Path:
        """Where an uploaded image is written."""
        return self.images_dir / f"{image_id}{suffix}"

    def label_path(self, tag: str, image_id: str, suffix: str) -> Path:
        """Where a saved label is written."""
        return self.labels_dir / tag / f"{image_id}{suffix}"

    def is_users_own(self, label: Path) -> bool:
        """Whether a label lies beside the tags' folders: the user's own file, which is never touched."""
        return label.parent in self.in_place.values()

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """A value that changes when files come or go: the folders' time stamps, and the names in those still warm."""
        folders = [self.images_dir, self.labels_dir, *self.in_place.values(), *self._tag_folders()]
        stamps = []
        for folder in folders:
            changed = _mtime(folder)
            warm = abs(time.time() - changed * 1e-9) < WARM_SECONDS
            stamps.append((str(folder), changed, hash(_names(folder)) if warm else 0))
        return tuple(stamps)

    def scan(self, known: Known) -> Scan:
        """List the images and labels.

        Args:
            known: records of the index; of several files with one id the known one is kept.
        """
        scan = Scan()
        wanted = {image: record["image"]["ext"] for image, record in known.items()}
        scan.images = self._files(self.images_dir, self.suffixes, wanted, scan.problems)
        for folder in self._tag_folders():
            saved = self._label_files(folder, folder.name, known, scan)
            if saved:
                scan.labels[folder.name] = saved
        for tag, folder in self.in_place.items():
            own = self._label_files(folder, tag, known, scan)
            if own:
                scan.labels[tag] = {**own, **scan.labels.get(tag, {})}
        if not self.plain and any(image_suffix(path) for path in _files_of(self.labels_dir)):
            scan.problems.append(f"files directly in {self.labels_dir} are not used; move them to labels/final")
        return scan

    def _label_files(self, folder: Path, tag: str, known: Known, scan: Scan) -> dict[str, Path]:
        wanted = {image: record["labels"].get(tag, {}).get("ext", "") for image, record in known.items()}
        found = self._files(folder, LABEL_SUFFIXES, wanted, scan.problems)
        return {image: path for image, path in found.items() if image in scan.images}

    def _files(
        self, folder: Path, suffixes: Sequence[str], wanted: Mapping[str, str], problems: list[str]
    ) -> dict[str, Path]:
        """Files of a folder by id; where several share an id, the one with the wanted suffix, else the first suffix."""
        candidates: dict[str, list[tuple[int, Path]]] = {}
        for path in _files_of(folder):
            suffix = max((s for s in suffixes if path.name.lower().endswith(s)), key=len, default="")
            identifier = path.name[: -len(suffix)] if suffix else ""
            if not suffix:
                continue
            if not is_name(identifier):
                problems.append(f"{path} is not used: rename it to letters, digits, '.', '_' and '-'")
                continue
            rank = -1 if wanted.get(identifier) == path.name[len(identifier) :] else suffixes.index(suffix)
            candidates.setdefault(identifier, []).append((rank, path))
        for identifier, entries in candidates.items():
            entries.sort()
            if len(entries) > 1:
                others = ", ".join(path.name for _, path in entries[1:])
                problems.append(
                    f"in {folder}, {len(entries)} files share the id {identifier!r}: {entries[0][1].name} is used, "
                    f"{others} not; rename all but one"
                )
        return {identifier: entries[0][1] for identifier, entries in sorted(candidates.items())}

    def _tag_folders(self) -> list[Path]:
        try:
            folders = [Path(entry.path) for entry in os.scandir(self.labels_dir) if entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(folder for folder in folders if is_name(folder.name))

    def _is_plain(self) -> bool:
        """`images/` holds the images, unless it is empty and there are images beside it."""
        inside = self.root / "images"
        if not inside.is_dir():
            return False
        return any(image_suffix(p) for p in _files_of(inside)) or not any(image_suffix(p) for p in _files_of(self.root))


def _files_of(folder: Path) -> Iterator[Path]:
    """Files of a folder, without sub-folders, hidden files and dead links."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_file():
            yield Path(entry.path)


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _mtime(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def image_suffixes(extensions: Sequence[str] | None) -> tuple[str, ...]:
    """Image suffixes of file patterns such as `*.nii.gz`; all that medseg reads for None.

    Raises:
        MedsegError: none of them is known.
    """
    if extensions is None:
        return IMAGE_SUFFIXES
    given = [extensions] if isinstance(extensions, str) else list(extensions)
    known = tuple(s for e in given if (s := e.removeprefix("*").lower()) in IMAGE_SUFFIXES)
    if not known:
        raise MedsegError(f"none of the image suffixes {', '.join(given)} is known; use {', '.join(IMAGE_SUFFIXES)}")
    return known
