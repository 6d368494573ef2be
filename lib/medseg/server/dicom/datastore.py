"""The datastore over a DICOMweb archive: `MedsegDatastore` with images and finished labels in the archive.

Image id = Series Instance UID. Images are fetched when they are needed and kept as NIfTI. A finished label is kept
here, with its history, and goes to the archive as a DICOM SEG before the save is acknowledged. A SEG that anybody else
stores there (a viewer, another machine) becomes the case's finished label, with its author. Weak labels, journal,
history and label names are those of `MedsegDatastore`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from monai.data import MetaTensor
from monailabel.datastore.local import LocalDatastoreModel
from pydicom.dataset import Dataset

from medseg.domains import TAGS
from medseg.errors import ConflictError, MedsegError, NotFoundError, UnusableInputError
from medseg.files import read_json, write_json
from medseg.server.datastore import MedsegDatastore
from medseg.server.dicom.archive import Archive, SeriesEntry
from medseg.server.dicom.catalogue import FOREIGN, LABEL, OLDER, REFUSED, REMOVED, SegRecord
from medseg.server.dicom.codes import LabelCodes
from medseg.server.dicom.folders import ARCHIVED, IMAGE_SUFFIX, ArchiveFolders
from medseg.server.dicom.grid import SeriesGrid
from medseg.server.dicom.records import image_added, label_of
from medseg.server.dicom.seg_read import SegFacts, label_info, read_segmentation, seg_facts
from medseg.server.dicom.seg_write import SegmentationFacts, segmentation
from medseg.server.dicom.series import read_series
from medseg.server.history import LabelHistory
from medseg.server.ids import check_image_id, check_tag
from medseg.server.intake import FINAL, signer
from medseg.server.journal import make_entry
from medseg.server.label_names import FixedLabels, LabelNames, LabelRegistry
from medseg.server.settings import AppSettings
from medseg.server.store import Snapshot, StudyStore
from medseg.transforms.io import read_mask, write_volume

logger = logging.getLogger(__name__)

MODALITIES = AppSettings().modalities
LOOK_EVERY = 10.0  # ours: seconds between two looks at the archive
LOOK_SHARE = 20.0  # ours: and at least so many times as long as the last look took
FETCH_WAITS = 600.0  # ours: seconds another process may take to fetch the same series


class DicomWebDatastore(MedsegDatastore):
    """A DICOMweb archive as a study.

    Args:
        archive: the archive.
        folder: our own folder for it.
        labels: the app's labels; empty: registered as they come, also from segment names.
        modalities: series of these modalities are the study's images.
        codes: codes and colours of labels in DICOM SEG.
        auto_reload: look at the archive while the server runs; jobs do not.

    Attributes:
        on_label: called with the image when somebody else's segmentation became its label.
        holder: who works on an image at present; the author of a segmentation that names none.

    Raises:
        ConflictError: the archive does not answer, and was never seen before.
    """

    def __init__(
        self,
        archive: Archive,
        folder: Path,
        labels: Mapping[str, int] | None = None,
        *,
        modalities: Sequence[str] = MODALITIES,
        codes: LabelCodes | None = None,
        auto_reload: bool = True,
        lock_timeout: float = 30.0,
    ) -> None:
        self.archive = archive
        self.on_label: Callable[[str], Any] = lambda image_id: None
        self.holder: Callable[[str], str] = lambda image_id: ""
        self._modalities = frozenset(modalities)
        self._codes = codes or LabelCodes()
        self._looks = auto_reload
        self._looking = threading.Lock()
        self._sending: set[str] = set()
        self._next_look = 0.0
        folders = ArchiveFolders(folder)
        self._folders: ArchiveFolders = folders
        self._store = StudyStore(folders, auto_reload=True, lock_timeout=lock_timeout)
        self._history = LabelHistory(folders.service / "history")
        self._names: LabelNames = FixedLabels(labels) if labels else LabelRegistry(folders.service, self._store.lock)
        self._datastore_path = str(folders.root)  # the base class reads it
        self._last_saved: dict[str, str] = {}
        if auto_reload or not folders.catalogue.known:
            self._first_look()

    @property
    def _datastore(self) -> LocalDatastoreModel:
        if self._looks and time.monotonic() >= self._next_look:
            self._look_again()
        return super()._datastore

    # images

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image as NIfTI; fetched from the archive where it is not here yet.

        Raises:
            NotFoundError: no such image.
            ConflictError: the archive does not answer.
            UnusableInputError: the series is no image that can be read.
        """
        snapshot, _ = self._find(image_id)
        path = snapshot.scan.images[image_id]
        if not path.exists():
            self._fetch(image_id, path)
        return str(path)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Info of an image: DICOM identifiers, weak labels; its `path` where it was fetched already.

        Raises:
            NotFoundError: no such image.
        """
        info = super().get_image_info(image_id)
        if not Path(info["path"]).exists():
            del info["path"]
        return info

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any] | None) -> str:
        """Refused: images belong into the archive.

        Raises:
            ConflictError: always.
        """
        raise ConflictError(f"this study is the archive {self.archive.url}; store the DICOM images there")

    def remove_image(self, image_id: str) -> None:
        """Refused: images belong to the archive.

        Raises:
            ConflictError: always.
        """
        raise ConflictError(f"this study is the archive {self.archive.url}; remove the series there")

    def source(self, image_id: str) -> tuple[SeriesGrid, Dataset]:
        """Planes and header of an image's series."""
        self.get_image_uri(image_id)
        value = read_json(self._folders.header_path(check_image_id(image_id)))
        return SeriesGrid.from_dict(value["grid"]), Dataset.from_json(value["header"])

    # labels

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label on its image's grid; fetched from the archive where it is not here yet.

        Empty where the image has none under this tag, or where nothing usable lies in the archive.
        """
        path = super().get_label_uri(label_id, label_tag)
        while path and not Path(path).exists():  # one that turns out to be unusable gives way to the one before it
            self._fetch_label(check_image_id(label_id), check_tag(label_tag))
            path = super().get_label_uri(label_id, label_tag)
        return path

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label here. Its segmentation stays in the archive, and does not count here any more.

        Raises:
            NotFoundError: no such label.
        """
        place = self.get_label_info(label_id, label_tag).get(ARCHIVED)
        super().remove_label(label_id, label_tag)
        if place:
            self._note(SeriesEntry(place["series"], place["study"], "SEG"), label_id, REMOVED)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of image and final label."""
        root = self._folders.root
        pairs = [(self.get_image_uri(i), self.get_label_uri(i, FINAL)) for i in self.get_labeled_images()]
        found = [{"image": Path(image), "label": Path(label)} for image, label in pairs if label]
        return [{k: str(p if full_path else p.relative_to(root)) for k, p in pair.items()} for pair in found]

    def refresh(self) -> None:
        """Look at the archive and at the folder now."""
        with self._looking:
            self._look()
        super().refresh()

    @contextlib.contextmanager
    def storing(self, series: Collection[str]) -> Iterator[None]:
        """While series go to the archive, a look at it leaves them to whoever sends them."""
        self._sending.update(series)
        try:
            yield
        finally:
            self._sending.difference_update(series)

    def take_up(self, series: Collection[str], author: str = "") -> list[str]:
        """Take up, with their voxels, segmentations that were stored just now; the images that got a label.

        Args:
            series: their Series Instance UIDs.
            author: who stored them, where that is known better than they tell.
        """
        with self._looking:
            return self._look(series, author)

    def outcome(self, series: str) -> dict[str, Any]:
        """What became of a segmentation: `state` (that of `SegRecord`), `image`, and `remarks`, or why it was refused.

        Raises:
            NotFoundError: it was not looked at yet.
        """
        record = self._folders.catalogue.segmentations.get(series)
        if record is None:
            raise NotFoundError(f"segmentation {series!r} was not looked at yet; the archive is looked at again soon")
        info = self.get_label_info(record.image, FINAL) if record.state == LABEL else {}
        own = (info.get(ARCHIVED) or {}).get("series") == series
        remarks = list(info.get("remarks") or []) if own else [record.why] if record.why else []
        return {"state": record.state, "image": record.image, "remarks": remarks}

    def dicom_seg(self, image_id: str, mask_file: Path, facts: SegmentationFacts, labels: Mapping[str, int]) -> Dataset:
        """A mask on an image's grid as a DICOM SEG.

        Raises:
            NotFoundError: no such image.
        """
        grid, header = self.source(image_id)
        mask = read_mask(mask_file)[0].numpy()
        return segmentation(mask.reshape(grid.shape), labels, grid, header, self._codes, facts)

    # fetching

    def _fetch(self, image_id: str, path: Path) -> None:
        """Download a series and keep it as NIfTI, with its planes beside it."""
        entry = self._folders.catalogue.images[image_id]
        lock = self._folders.service / f"fetch-{image_id}.lock"
        with FileLock(str(lock), timeout=FETCH_WAITS):
            if path.exists():
                return
            started = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="medseg-series-") as folder:
                series = read_series(self.archive.fetch(entry, Path(folder)))
            facts = {"grid": series.grid.to_dict(), "header": series.header.to_json_dict()}
            write_json(self._folders.header_path(image_id), facts)
            write_volume(path, series.volume)
            logger.info("fetched %s: %s, %.1f s", image_id, series.grid.shape, time.perf_counter() - started)
        lock.unlink(missing_ok=True)
        told: dict[str, Any] = {name: str(value) for name in TAGS if (value := series.header.get(name))}
        if series.remarks:
            told["remarks"] = list(series.remarks)
        if told:
            self.update_image_info(image_id, told)

    def _fetch_label(self, image_id: str, tag: str) -> None:
        """Bring a finished label from the archive onto its image's grid; one that cannot be used is taken back."""
        info = self.get_label_info(image_id, tag)
        place = info.get(ARCHIVED) or {}
        entry = SeriesEntry(place.get("series", ""), place.get("study", ""), "SEG")
        self.get_image_uri(image_id)  # an image that cannot be read is no fault of its label
        try:
            self._place(image_id, tag, entry, info)
        except (UnusableInputError, NotFoundError) as error:
            self._refuse(entry, image_id, error)
            self._give_way(image_id, entry.uid)

    def _place(self, image_id: str, tag: str, entry: SeriesEntry, info: Mapping[str, Any]) -> None:
        grid, _ = self.source(image_id)
        objects = list(itertools.islice(self.archive.objects(entry), 2))
        if not objects:
            raise NotFoundError(f"the archive {self.archive.url} has no objects of series {entry.uid}")
        _one_object(len(objects))
        ds = objects[0]
        read = read_segmentation(ds, grid)
        mask = read.mask if grid.placed else MetaTensor(read.mask.as_tensor()[..., 0])  # a radiograph is 2D
        with tempfile.TemporaryDirectory(prefix="medseg-label-") as staging:
            file = write_volume(Path(staging) / "segmentation.nii.gz", mask)
            stated = {**info, "label_info": label_info(seg_facts(ds), read.mask)}
            placed, facts = self._apply_contract(image_id, tag, file, stated, Path(staging))
            facts["remarks"] = [*read.remarks, *facts["remarks"]]
            with self._store.writing():
                self._put_label(image_id, tag, placed, {**info, **facts})

    # saving

    @contextlib.contextmanager
    def _published(self, image_id: str, tag: str, file: Path, info: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """A finished label goes to the archive first: what was acknowledged can be read on another machine."""
        if tag != FINAL:
            yield info
            return
        facts = SegmentationFacts(
            author=signer(info),
            description=str(info.get("description") or "medseg"),
            model=str(info.get("model") or "medseg"),
            algorithm="SEMIAUTOMATIC" if info.get("model") else "MANUAL",
        )
        ds = self.dicom_seg(image_id, file, facts, info.get("label_names") or self.labels)
        told = seg_facts(ds)
        with self.storing((told.series,)):
            self.archive.store(ds)
            place = {"series": told.series, "instance": told.instance, "study": str(ds.StudyInstanceUID)}
            yield {**info, ARCHIVED: place, "created": told.created}

    def _put_label(self, image_id: str, tag: str, file: Path, info: Mapping[str, Any]) -> None:
        if place := info.get(ARCHIVED):
            self._note(SeriesEntry(place["series"], place["study"], "SEG"), image_id, LABEL)
        super()._put_label(image_id, tag, file, info)

    def _keep_version(self, image_id: str, tag: str, snapshot: Snapshot) -> None:
        """A label that was never fetched lies in the archive, which keeps it; one that is here goes to the history."""
        path = snapshot.label_file(image_id, tag)
        if path is not None and path.exists():
            super()._keep_version(image_id, tag, snapshot)

    # looking at the archive

    def _first_look(self) -> None:
        with self._looking:
            try:
                self._look()
            except ConflictError:
                if not self._folders.catalogue.known:
                    raise
                logger.warning("the archive %s does not answer; going on with what was last seen", self.archive.url)

    def _look_again(self) -> None:
        """Look at the archive, unless another thread does."""
        if not self._looking.acquire(blocking=False):
            return
        try:
            self._look()
        except MedsegError as error:
            self._next_look = time.monotonic() + LOOK_EVERY
            logger.warning("%s", error)
        finally:
            self._looking.release()

    def _look(self, stored: Collection[str] = (), author: str = "") -> list[str]:
        """Take up what is new in the archive, some of it stored just now; the images that got a label."""
        started = time.monotonic()
        segs = {e.uid: e for e in self.archive.series(Modality="SEG") if e.modality == "SEG"}  # some ignore conditions
        images = {e.uid: e for e in self.archive.images() if e.modality in self._modalities}
        with self._store.writing():
            self._folders.catalogue.set_images(images)
        with self._store.writing():  # entered anew, the store sees the new list
            new = [entry for entry in images.values() if not self._registered(entry)]
            if new:
                self._store.commit(*(image_added(entry) for entry in new))
        labelled = self._choose([entry for entry in segs.values() if self._is_new(entry)], stored, author)
        for image in labelled:
            self.on_label(image)
        self._retire_vanished(segs)
        self._next_look = time.monotonic() + max(LOOK_EVERY, LOOK_SHARE * (time.monotonic() - started))
        return labelled

    def _is_new(self, entry: SeriesEntry) -> bool:
        """Whether a segmentation was not looked at before, or its image has only come since."""
        catalogue = self._folders.catalogue
        record = catalogue.segmentations.get(entry.uid)
        known = record is not None and not (record.state == FOREIGN and record.image in catalogue.images)
        return not known and entry.uid not in self._sending

    def _registered(self, entry: SeriesEntry) -> bool:
        record = self._store.snapshot().model.objects.get(entry.uid)
        return record is not None and "StudyInstanceUID" in record.image.info

    def _facts(self, entries: Sequence[SeriesEntry]) -> Iterator[tuple[SeriesEntry, SegFacts]]:
        """What new segmentations say of themselves."""
        for entry in entries:
            try:
                metadata = self.archive.metadata(entry)
                if not metadata:
                    continue
                _one_object(len(metadata))
                facts = self._with_image(seg_facts(metadata[0]), entry)
            except NotFoundError:  # it went away meanwhile
                continue
            except (ConflictError, OSError) as error:  # it is new at the next look again
                logger.warning("segmentation %s is not read yet: %s", entry.uid, error)
                continue
            except Exception as error:  # whatever a malformed object makes the readers raise
                self._refuse(entry, "", error)
                continue
            yield entry, facts

    def _with_image(self, facts: SegFacts, entry: SeriesEntry) -> SegFacts:
        """The facts of a segmentation that tells no series: that of the images its frames were drawn on."""
        if facts.image:
            return facts
        image = self.archive.series_of(entry.study, facts.sources[0]) if facts.sources else ""
        if not image:
            raise UnusableInputError(
                "it tells no series it belongs to; store it again from a program that refers to the series"
            )
        return replace(facts, image=image)

    def _choose(self, entries: Sequence[SeriesEntry], stored: Collection[str] = (), author: str = "") -> list[str]:
        """Of each image's segmentations, the newest that can be used becomes the label; the images that got one."""
        found: dict[str, list[tuple[SeriesEntry, SegFacts]]] = {}
        for entry, facts in sorted(self._facts(entries), key=lambda item: (item[1].created, item[1].series)):
            found.setdefault(facts.image, []).append((entry, facts))  # names are numbered in this order
        labelled = []
        for image, segs in found.items():
            segs.reverse()
            segs.sort(key=lambda item: item[0].uid not in stored)
            try:
                if self._take_newest(segs, stored, author):
                    labelled.append(image)
            except ConflictError as error:  # it is new at the next look again, and must not keep others waiting
                logger.warning("segmentations of image %s are not read yet: %s", image, error)
        return labelled

    def _take_newest(self, segs: Sequence[tuple[SeriesEntry, SegFacts]], stored: Collection[str], author: str) -> bool:
        """The first of an image's segmentations that can be used becomes the label; whether there is one."""
        for number, (entry, facts) in enumerate(segs):
            if self._take(entry, facts, entry.uid in stored, author):
                for older, _ in segs[number + 1 :]:
                    self._note(older, facts.image, OLDER)
                return True
        return False

    def _take(self, entry: SeriesEntry, facts: SegFacts, just_stored: bool, author: str) -> bool:
        """Decide what a segmentation is; whether it is its image's label now.

        A label whose voxels are here is replaced only by one whose voxels were read.
        """
        if facts.image not in self._folders.catalogue.images:
            self._note(entry, facts.image, FOREIGN)
            return False
        snapshot, record = self._find(facts.image)
        present = record.labels[FINAL].info if FINAL in record.labels else {}
        if facts.created < str(present.get("created") or "") and not just_stored:
            self._note(entry, facts.image, OLDER)
            return False
        file = snapshot.label_file(facts.image, FINAL)
        known_by = (author or facts.author or self.holder(facts.image)) if just_stored else facts.author
        info = label_of(entry, facts, known_by)
        try:
            self._names.resolve(list(facts.names.values()))
            if just_stored or (file is not None and file.exists()):
                self._place(facts.image, FINAL, entry, info)
            else:
                self._register(entry, facts.image, info)
        except (UnusableInputError, NotFoundError) as error:
            self._refuse(entry, facts.image, error)
            return False
        logger.info("segmentation %s by %s labels image %s", entry.uid, known_by or "unknown", facts.image)
        return True

    def _register(self, entry: SeriesEntry, image_id: str, info: Mapping[str, Any]) -> None:
        """A segmentation becomes the finished label; its voxels are fetched when they are needed."""
        with self._store.writing():
            self._note(entry, image_id, LABEL)
            fields = {"image": image_id, "tag": FINAL, "ext": IMAGE_SUFFIX, "author": info["author"]}
            self._store.commit(make_entry("label_saved", **fields, info=dict(info)))

    def _refuse(self, entry: SeriesEntry, image_id: str, error: Exception) -> None:
        logger.warning("segmentation %s of image %s is not used: %s", entry.uid, image_id, error)
        self._note(entry, image_id, REFUSED, str(error))

    def _retire_vanished(self, segs: Mapping[str, SeriesEntry]) -> None:
        """Labels whose segmentation somebody removed from the archive do not count any more; the history keeps them."""
        for image, record in super()._datastore.objects.items():
            place = record.labels[FINAL].info.get(ARCHIVED) if FINAL in record.labels else None
            if not place or place["series"] in segs or self.archive.series(SeriesInstanceUID=place["series"]):
                continue
            logger.warning("the segmentation of image %s is not in the archive any more", image)
            with self._store.writing():
                self._folders.catalogue.forget_segmentation(place["series"])
            self._give_way(image, place["series"])

    def _give_way(self, image_id: str, uid: str) -> None:
        """A segmentation is its image's label no more; the newest other one that can be used takes its place."""
        with self._store.writing():
            place = self.get_label_info(image_id, FINAL).get(ARCHIVED) or {}
            if place.get("series") != uid:
                return  # another one has taken its place meanwhile
            self._retire(image_id, FINAL, self._store.snapshot())
            self._store.commit(make_entry("label_removed", image=image_id, tag=FINAL))
        known = self._folders.catalogue.segmentations.items()
        others = [key for key, r in known if r.image == image_id and r.state in (LABEL, OLDER) and key != uid]
        self._choose([SeriesEntry(key, self._folders.catalogue.segmentations[key].study, "SEG") for key in others])

    def _note(self, entry: SeriesEntry, image: str, state: str, why: str = "") -> None:
        with self._store.writing():
            self._folders.catalogue.set_segmentation(entry.uid, SegRecord(image, state, why, entry.study))


def _one_object(count: int) -> None:
    """Several objects in one series may be parts of one label or its versions; nothing tells which.

    Raises:
        UnusableInputError: there are several.
    """
    if count > 1:
        raise UnusableInputError(
            f"its series holds several segmentation objects ({count} seen, 1 is read); "
            "store all labels as segments of one object, in a series of its own"
        )
