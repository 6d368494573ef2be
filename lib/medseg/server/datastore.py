"""The datastore of a studies folder: MONAI Label's local datastore, made safe for several processes and years of use.

`StudyStore` keeps the state, `LabelHistory` previous versions, the label contract checks what is saved; this class is
the interface that MONAI Label calls. Whatever names an image, a tag or a file is checked before it becomes a path.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel

from medseg.errors import ConflictError, MedsegError, NotFoundError, UnusableInputError
from medseg.server.folders import StudyFolders, image_suffixes
from medseg.server.history import LabelHistory, LabelVersion, copy_atomically, file_sha256
from medseg.server.ids import check_image_id, check_image_suffix, check_label_suffix, check_tag
from medseg.server.intake import FINAL, clean_image_info, clean_info, conform, holds_mask, signer, usual_labels
from medseg.server.journal import make_entry, now
from medseg.server.label_file import image_grid
from medseg.server.label_names import FixedLabels, LabelNames, LabelRegistry
from medseg.server.slicer_points import take_markups
from medseg.server.store import Snapshot, StudyStore
from medseg.server.weak_regions import check_weak_regions
from medseg.transforms.io import read_image


class MedsegDatastore(LocalDatastore):
    """A studies folder, flat or with `images/` and `labels/` (see `medseg.server.folders`).

    The base class's constructor is not called: it reads, writes and watches the folder in ways that lose changes. Its
    methods work on `_datastore`, which here is the present snapshot.

    Args:
        datastore_path: the studies folder; created where it does not exist.
        labels: the app's labels, name -> 1..N. Empty: names are registered as they come, in `.medseg/labels.json`.
        extensions: image suffixes or patterns (`*.nii.gz`) to look for, of those medseg reads; None: all of them.
        auto_reload: notice files that come and go while the server runs.
        read_only: never write; changes are refused.
        lock_timeout: seconds to wait for another process.

    Raises:
        MedsegError: the folder cannot be used or written.
        ConflictError: another process holds its lock.
    """

    def __init__(
        self,
        datastore_path: str | Path,
        labels: Mapping[str, int] | None = None,
        *,
        extensions: Sequence[str] | None = None,
        auto_reload: bool = True,
        read_only: bool = False,
        lock_timeout: float = 30.0,
    ) -> None:
        self._folders = StudyFolders(Path(datastore_path), image_suffixes(extensions))
        self._store = StudyStore(self._folders, auto_reload=auto_reload, read_only=read_only, lock_timeout=lock_timeout)
        self._history = LabelHistory(self._folders.service / "history")
        self._names: LabelNames = (
            FixedLabels(labels) if labels else LabelRegistry(self._folders.service, self._store.lock)
        )
        self._datastore_path = str(self._folders.root)  # the base class reads it
        self._last_saved: dict[str, str] = {}

    @property
    def _datastore(self) -> LocalDatastoreModel:
        return self._store.snapshot().model

    @property
    def labels(self) -> dict[str, int]:
        """The labels masks are saved with, name -> value."""
        return self._names.labels()

    def set_name(self, name: str) -> None:
        """Name the data set."""
        with self._store.writing():
            self._store.describe(name=str(name))

    def set_description(self, description: str) -> None:
        """Describe the data set."""
        with self._store.writing():
            self._store.describe(description=str(description))

    # images

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image, under the name it has in the studies folder (links are not followed).

        Raises:
            NotFoundError: no such image.
        """
        snapshot, _ = self._find(image_id)
        return str(snapshot.scan.images[image_id])

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Info of an image, with its `path`.

        Raises:
            NotFoundError: no such image.
        """
        snapshot, record = self._find(image_id)
        return {**copy.deepcopy(record.image.info), "path": str(snapshot.scan.images[image_id])}

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any] | None) -> str:
        """Copy an image into the studies folder. Adding the same image again only updates its info.

        Raises:
            ConflictError: another image has this id.
            UnusableInputError: the file is no image, or the info holds bad weak labels.
        """
        source = Path(image_filename)
        suffix = check_image_suffix(source)
        if suffix not in self._folders.suffixes:
            raise UnusableInputError(f"images {suffix} are not served here; use {', '.join(self._folders.suffixes)}")
        identifier = check_image_id(image_id or source.name[: -len(suffix)])
        image_grid(source)
        info = clean_image_info(image_info, identifier)
        with self._store.writing():
            present = self._store.snapshot().scan.images.get(identifier)
            if present is None:
                present = copy_atomically(source, self._folders.image_path(identifier, suffix))
            elif file_sha256(present) != file_sha256(source):
                raise ConflictError(
                    f"image id {identifier!r} is taken by {present.name}, which is another image; "
                    "choose another id, or remove that image first"
                )
            info = {**info, "ts": int(time.time()), "name": present.name}
            ext = present.name.removeprefix(identifier)
            entry = make_entry("image_added", image=identifier, ext=ext, info=info, author=signer(info))
            self._store.commit(entry)
        return identifier

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Overwrite keys of an image's info; a `weak` object is checked first, markups in it become landmarks.

        Raises:
            NotFoundError: no such image.
            UnusableInputError: names the field of `weak` that is wrong, or a region that the region mask does not have.
        """
        identifier = check_image_id(image_id)
        told = take_markups(info, f"image {identifier}", lambda: Path(self.get_image_uri(identifier)))
        values = clean_image_info(told, identifier)
        self._find(identifier)
        if values.get("weak"):
            check_weak_regions(self, identifier, values["weak"])
        with self._store.writing():
            self._find(identifier)
            self._store.commit(make_entry("image_info", image=identifier, info=values, author=signer(values)))

    def remove_image(self, image_id: str) -> None:
        """Take an image and its labels out of the study.

        The image file moves to `.medseg/removed/`, saved labels to the history. The user's own label files stay.

        Raises:
            NotFoundError: no such image.
        """
        identifier = check_image_id(image_id)
        with self._store.writing():
            snapshot, record = self._find(identifier)
            for tag in record.labels:
                self._retire(identifier, tag, snapshot)
            image = snapshot.scan.images[identifier]
            removed = self._folders.service / "removed"
            removed.mkdir(exist_ok=True)
            image.rename(removed / f"{time.time_ns()}-{image.name}")
            self._store.commit(make_entry("image_removed", image=identifier))

    # labels

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of images that have a label under a tag (default `final`); `labels` is not used."""
        tag = check_tag(label_tag or FINAL)
        return [image for image, record in self._datastore.objects.items() if tag in record.labels]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of images that have no label under a tag (default `final`); `labels` is not used."""
        tag = check_tag(label_tag or FINAL)
        return [image for image, record in self._datastore.objects.items() if tag not in record.labels]

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Path of a label; empty where the image has none under this tag.

        Raises:
            NotFoundError: no such image.
        """
        tag = check_tag(label_tag)
        snapshot, record = self._find(label_id)
        return str(snapshot.label_file(label_id, tag)) if tag in record.labels else ""

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Info of a label; empty where the image has none under this tag.

        Raises:
            NotFoundError: no such image.
        """
        label = self._find(label_id)[1].labels.get(check_tag(label_tag))
        return copy.deepcopy(label.info) if label else {}

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any] | None) -> str:
        """Save a label. Masks (`final`, `original`, `final_<user>`, `regions`) pass the label contract first.

        The info gains `author` (of `client_id` or `user`), `saved` and `sha256`, and for masks `remarks`, `voxels` and
        `label_names`. The version that is replaced goes to the history. A label that is refused changes nothing.

        Raises:
            NotFoundError: no such image.
            UnusableInputError: the label cannot be used, or its image cannot be read; says why.
        """
        identifier, tag, file = check_image_id(image_id), check_tag(label_tag), Path(label_filename)
        check_label_suffix(file)
        self._find(identifier)
        info = clean_info(label_info, f"label {identifier}")
        with tempfile.TemporaryDirectory(prefix="medseg-label-") as staging:
            if holds_mask(tag, file):
                read_image(Path(self.get_image_uri(identifier)))  # the contract looks at its grid only
                file, facts = self._apply_contract(identifier, tag, file, info, Path(staging))
                info = {**info, **facts}
            with self._published(identifier, tag, file, info) as known, self._store.writing():
                self._put_label(identifier, tag, file, known)
        self._last_saved[identifier] = tag
        return identifier

    def saved_remarks(self, image_id: str) -> list[str]:
        """Quality remarks on the label of an image that was saved last by this process, whatever its tag."""
        tag = self._last_saved.get(check_image_id(image_id))
        return list(self.get_label_info(image_id, tag).get("remarks", [])) if tag else []

    def last_saved(self, count: int) -> list[dict[str, Any]]:
        """The finished labels that were saved last, newest first: `image`, `tag`, `author`, `saved` and `remarks`."""
        told = {"author": "", "saved": "", "remarks": []}
        found = [
            {"image": image, "tag": tag, **{key: label.info.get(key) or empty for key, empty in told.items()}}
            for image, record in self._store.snapshot().model.objects.items()
            for tag, label in record.labels.items()
            if tag.startswith(FINAL) and label.info.get("saved")
        ]
        return sorted(found, key=lambda entry: str(entry["saved"]), reverse=True)[:count]

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Overwrite keys of a label's info.

        Raises:
            NotFoundError: no such label.
        """
        identifier, tag = check_image_id(label_id), check_tag(label_tag)
        values = clean_info(info, f"label {identifier}")
        with self._store.writing():
            self._find_label(identifier, tag)
            fields = {"image": identifier, "tag": tag, "info": values, "author": signer(values)}
            self._store.commit(make_entry("label_info", **fields))

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; it stays in the history. Where the user's own file lies below it, that counts again.

        Raises:
            NotFoundError: no such label.
            ConflictError: it is the user's own file, which is never deleted here.
        """
        identifier, tag = check_image_id(label_id), check_tag(label_tag)
        with self._store.writing():
            self._find_label(identifier, tag)
            snapshot = self._store.snapshot()
            path = snapshot.scan.labels[tag][identifier]
            if self._folders.is_users_own(path):
                raise ConflictError(f"{path} is your own file, which is never deleted here; delete or move it yourself")
            self._retire(identifier, tag, snapshot)
            self._store.commit(make_entry("label_removed", image=identifier, tag=tag))
            self._store.register_new_files()

    def label_history(self, image_id: str, label_tag: str = FINAL) -> list[LabelVersion]:
        """Previous versions of a label, oldest first; also of labels and images that were removed."""
        return self._history.versions(check_tag(label_tag), check_image_id(image_id))

    def restore_label(self, image_id: str, label_tag: str, number: int, author: str = "") -> None:
        """Make a previous version the present one; the present one goes to the history.

        Args:
            image_id: the image.
            label_tag: the tag.
            number: the version's number.
            author: who restores it; default its own author.

        Raises:
            NotFoundError: no such image or version.
        """
        identifier, tag = check_image_id(image_id), check_tag(label_tag)
        self._find(identifier)
        version = self._history.version(tag, identifier, number)
        info = {**version.info, "client_id": author or version.author, "restored_from": number}
        with self._published(identifier, tag, version.file, info) as known, self._store.writing():
            self._put_label(identifier, tag, version.file, known)

    # lists

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of image and final label; paths relative to the studies folder unless `full_path`."""
        snapshot, root = self._store.snapshot(), self._folders.root
        ids = [image for image, record in snapshot.model.objects.items() if FINAL in record.labels]
        pairs = [{"image": snapshot.scan.images[i], "label": snapshot.scan.labels[FINAL][i]} for i in ids]
        return [{k: str(p if full_path else p.relative_to(root)) for k, p in pair.items()} for pair in pairs]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Path of a ZIP of images and final labels.

        Raises:
            NotFoundError: there is no finished label yet.
        """
        if not self.get_labeled_images():
            raise NotFoundError("there is no finished label to download yet; save one first")
        return str(super().get_dataset_archive(limit_cases))

    def status(self) -> dict[str, Any]:
        """Counts, and `problems`: files in the folder that are not used, and why."""
        return {**super().status(), "problems": list(self._store.snapshot().scan.problems)}

    def refresh(self) -> None:
        """Look at the folder and register what is new."""
        self._store.refresh()

    def _update_datastore_file(self, lock: bool = True) -> None:
        raise MedsegError("the index is written through the journal only")

    # helpers

    def _find(self, image_id: str) -> tuple[Snapshot, ImageLabelModel]:
        snapshot = self._store.snapshot()
        record = snapshot.model.objects.get(check_image_id(image_id))
        if record is None:
            raise NotFoundError(f"image {image_id!r} is not in {self._folders.root}")
        return snapshot, record

    def _find_label(self, image_id: str, tag: str) -> DataModel:
        label = self._find(image_id)[1].labels.get(tag)
        if label is None:
            raise NotFoundError(f"image {image_id!r} has no label {tag!r}")
        return label

    def _apply_contract(
        self, image_id: str, tag: str, file: Path, info: Mapping[str, Any], staging: Path
    ) -> tuple[Path, dict[str, Any]]:
        """Check a mask; the file to store, and what there is to say of it."""
        infos = [record.labels[FINAL].info for record in self._datastore.objects.values() if FINAL in record.labels]
        image = Path(self.get_image_uri(image_id))
        return conform(file, image, image_id, tag, info, self._names, usual_labels(infos), staging)

    @contextlib.contextmanager
    def _published(self, image_id: str, tag: str, file: Path, info: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Around a save, outside `writing`: what takes long must not hold the lock. The info to save."""
        yield info

    def _put_label(self, image_id: str, tag: str, file: Path, info: Mapping[str, Any]) -> None:
        """Within `writing`: put a label file in place of the present one."""
        snapshot, _ = self._find(image_id)
        suffix = check_label_suffix(file)
        target = self._folders.label_path(tag, image_id, suffix)
        self._keep_version(image_id, tag, snapshot)
        copy_atomically(file, target)
        present = snapshot.label_file(image_id, tag)
        if present is not None and present != target and not self._folders.is_users_own(present):
            present.unlink(missing_ok=True)  # the same label under another suffix; the history has it
        sha256, author = file_sha256(target), signer(info)
        facts = {"ts": int(time.time()), "name": target.name, "saved": now(), "author": author, "sha256": sha256}
        fields = {"image": image_id, "tag": tag, "ext": suffix, "author": author, "sha256": sha256}
        self._store.commit(make_entry("label_saved", **fields, info={**info, **facts}))

    def _keep_version(self, image_id: str, tag: str, snapshot: Snapshot) -> None:
        path = snapshot.label_file(image_id, tag)
        if path is not None:
            record = snapshot.model.objects[image_id].labels.get(tag)
            self._history.keep(tag, image_id, path, record.info if record else {})

    def _retire(self, image_id: str, tag: str, snapshot: Snapshot) -> None:
        """Within `writing`: move a label to the history."""
        self._keep_version(image_id, tag, snapshot)
        path = snapshot.label_file(image_id, tag)
        if path is not None and not self._folders.is_users_own(path):
            path.unlink(missing_ok=True)
