"""State of one studies folder, shared by several processes.

The journal (`.medseg/journal.jsonl`) is the truth. Every process keeps the state that the journal amounts to, reads on
from where it stopped before it answers, and writes only while it holds the lock, after it has read what the others
wrote: no acknowledged change is lost. The index `datastore_v2.json` is a copy for fast starts and for other programs;
cut off, empty or missing, it is rebuilt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastoreModel

from medseg.errors import ConflictError, MedsegError
from medseg.server.folders import Scan, StudyFolders
from medseg.server.index import IndexState, Record, read_index, write_index
from medseg.server.journal import Entry, Journal, make_entry

logger = logging.getLogger(__name__)

WITHOUT_FILES = ("image_info", "label_info", "dataset")  # changes after which the folder need not be listed again
READER_WAITS = 0.5  # ours: seconds; a reader that cannot register a new file at once does it with a later call


@dataclass(frozen=True)
class Snapshot:
    """What is known of the files that are there, at one moment.

    Attributes:
        model: MONAI Label's form of it.
        scan: the files.
    """

    model: LocalDatastoreModel
    scan: Scan

    def label_file(self, image_id: str, tag: str) -> Path | None:
        """The file of a label; None where there is none."""
        return self.scan.labels.get(tag, {}).get(image_id)


class StudyStore:
    """Reads and changes the state of a studies folder.

    Args:
        folders: the folder.
        auto_reload: notice files that come and go.
        read_only: never write; changes are refused.
        lock_timeout: seconds to wait for another process.

    Raises:
        MedsegError: the folder cannot be written.
        ConflictError: another process holds the lock.
    """

    def __init__(
        self, folders: StudyFolders, *, auto_reload: bool = True, read_only: bool = False, lock_timeout: float = 30.0
    ) -> None:
        self.folders = folders
        self.read_only = read_only
        self._auto_reload = auto_reload
        self._journal = Journal(folders.service / "journal.jsonl")
        self._state, self._offset = IndexState(), 0
        self._unregistered: list[Entry] = []
        self._stamp: object = None
        self._told: set[str] = set()
        self._guard = threading.RLock()
        self._writers = 0
        if not read_only:
            self._check_writable()
        self.lock = FileLock(str(folders.service / "lock"), timeout=lock_timeout, poll_interval=0.01)
        self._open()

    def snapshot(self) -> Snapshot:
        """The present state, with the changes of other processes and of the folder."""
        with self._guard:
            if not self._writers:
                changed = self._journal.size() != self._offset and self._catch_up()
                if changed or (self._auto_reload and self._files_changed()):
                    self._look()
            if self._writers or self.read_only or not (self._unregistered or self._journal_lost()):
                return self._snapshot
        try:
            with self.writing(READER_WAITS):  # which replaces a lost journal
                self.register_new_files()
        except ConflictError as error:
            logger.warning("what is new in %s is registered later: %s", self.folders.root, error)
        return self._snapshot

    @contextmanager
    def writing(self, timeout: float | None = None) -> Iterator[None]:
        """Hold the lock, knowing everything that others wrote. May be nested.

        Raises:
            ConflictError: read-only, or another process holds the lock for too long.
        """
        if self.read_only:
            raise ConflictError(f"{self.folders.root} is served read-only; nothing can be saved")
        with self._locked(timeout), self._guard:
            self._writers += 1
            try:
                if self._writers == 1:
                    if self._journal_lost():
                        self._replace_journal()
                    if self._catch_up() or self._files_changed():
                        self._look()
                yield
            finally:
                self._writers -= 1

    def commit(self, *entries: Entry) -> None:
        """Within `writing`: append to the journal, then renew state and index. Files must be in place before."""
        assert self._writers
        self._journal.append(entries)
        self._catch_up()
        self._look(self._snapshot.scan if all(e["change"] in WITHOUT_FILES for e in entries) else None)
        write_index(self.folders.index, self._snapshot.model, self._state.records, self._offset)

    def register_new_files(self) -> None:
        """Within `writing`: take files that the journal does not know into it."""
        if self._unregistered:
            self.commit(*self._unregistered)

    def refresh(self) -> None:
        """Look at the folder and register what is new."""
        if self.read_only:
            with self._guard:
                self._look()
            return
        with self.writing():
            self._look()
            self.register_new_files()

    def describe(self, name: str | None = None, description: str | None = None) -> None:
        """Within `writing`: name or describe the data set."""
        state = self._state
        fields = {"name": name or state.name, "description": description or state.description}
        self.commit(make_entry("dataset", **fields))

    def _open(self) -> None:
        if self.read_only:
            self._state.replay(self._load())
            self._look()
            return
        with self._locked(), self._guard:
            imported = self._load()
            if imported:
                self._journal.append(imported)
        with self.writing():
            self._look()
            self.commit(*self._unregistered)

    def _load(self) -> list[Entry]:
        """Set the state from index and journal; returns what an index of another program says beyond the journal."""
        stored = read_index(self.folders.index)
        if stored is not None and stored.journal is not None and stored.journal <= self._journal.size():
            self._state, self._offset = stored.state, stored.journal
            self._catch_up()
            return []
        self._catch_up()
        return self._state.changes_towards(stored.state) if stored is not None else []

    def _catch_up(self) -> bool:
        """Read on in the journal; whether there was anything new."""
        entries, self._offset = self._journal.read(self._offset)
        self._state.replay(entries)
        return bool(entries)

    def _files_changed(self) -> bool:
        return self.folders.stamp() != self._stamp

    def _journal_lost(self) -> bool:
        """Whether somebody deleted or cut the journal under this process, which has read more than there is."""
        return self._journal.size() < self._offset

    def _replace_journal(self) -> None:
        """Write everything known into the journal; the index must not count bytes of the lost one."""
        logger.warning("%s was lost and is written anew", self._journal.path)
        self._journal.append(IndexState().changes_towards(self._state))
        self._state, self._offset = IndexState(), 0
        self._catch_up()
        self._look()
        write_index(self.folders.index, self._snapshot.model, self._state.records, self._offset)

    def _look(self, scan: Scan | None = None) -> None:
        """Renew the snapshot, listing the files where no fresh `scan` is at hand."""
        records = self._state.records
        if scan is None:
            self._stamp = self.folders.stamp()
            scan = self.folders.scan(records)
        for problem in scan.problems:
            if problem not in self._told:
                logger.warning(problem)
                self._told.add(problem)
        self._unregistered = _new_files(scan, records)
        if self.read_only and self._unregistered:
            self._state.replay(self._unregistered)
        model = LocalDatastoreModel(
            name=self._state.name,
            description=self._state.description,
            images_dir=str(self.folders.images_dir.relative_to(self.folders.root)),
            objects={image: _present(image, records[image], scan) for image in scan.images if image in records},
            base_path=str(self.folders.root),
        )
        self._snapshot = Snapshot(model, scan)

    def _check_writable(self) -> None:
        try:
            self.folders.service.mkdir(exist_ok=True)
            with self._journal.path.open("ab"):
                pass
        except OSError as error:
            raise MedsegError(
                f"studies folder {self.folders.root} cannot be written ({error.strerror}), but labels are kept there; "
                "give write permission, or serve a folder of your own with links to the images"
            ) from error

    @contextmanager
    def _locked(self, timeout: float | None = None) -> Iterator[None]:
        self.folders.service.mkdir(exist_ok=True)
        try:
            self.lock.acquire(timeout=timeout)
        except Timeout as error:
            waited = self.lock.timeout if timeout is None else timeout
            raise ConflictError(
                f"another process has held the lock of {self.folders.root} for {waited:g} s; "
                f"try again, or stop the process that holds {self.lock.lock_file}"
            ) from error
        try:
            yield
        finally:
            self.lock.release()


def _present(image: str, record: Record, scan: Scan) -> ImageLabelModel:
    """The part of a record whose files are there."""
    here = {tag: label for tag, label in record["labels"].items() if image in scan.labels.get(tag, {})}
    labels = {tag: DataModel(**label) for tag, label in here.items()}
    return ImageLabelModel(image=DataModel(**record["image"]), labels=labels)


def _new_files(scan: Scan, records: Mapping[str, Record]) -> list[Entry]:
    """Entries for files that the journal does not know, or knows under another suffix."""
    entries = []
    for image, path in scan.images.items():
        ext = path.name.removeprefix(image)
        if image not in records or records[image]["image"]["ext"] != ext:
            info = {"ts": int(time.time()), "name": path.name}
            entries.append(make_entry("image_added", image=image, ext=ext, info=info, found=True))
    for tag, files in scan.labels.items():
        for image, path in files.items():
            label = records.get(image, {"labels": {}})["labels"].get(tag)
            ext = path.name.removeprefix(image)
            if label is None or label["ext"] != ext:
                info = {**(label["info"] if label else {}), "ts": int(time.time()), "name": path.name}
                entries.append(make_entry("label_saved", image=image, tag=tag, ext=ext, info=info, found=True))
    return entries
