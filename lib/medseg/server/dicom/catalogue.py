"""What an archive was last seen to hold, and what became of each segmentation in it.

Kept in the study's service folder, so that jobs and a server that starts while the archive is away know as much.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.config import settings as monai_settings

from medseg.errors import ConflictError
from medseg.files import read_json, write_json
from medseg.server.dicom.archive import Archive, SeriesEntry
from medseg.server.folders import SERVICE_FOLDER
from medseg.training.study import study_key

logger = logging.getLogger(__name__)

LABEL, OLDER, REFUSED, FOREIGN, REMOVED = "label", "older", "refused", "foreign", "removed"


@dataclass(frozen=True)
class SegRecord:
    """What became of one segmentation series.

    Attributes:
        image: id of its image.
        state: `label`: it is or was the case's label; `older`: a newer one was there when it was found; `refused`;
            `foreign`: its image is not in this study; `removed`: somebody removed the label here.
        why: a sentence, where it was refused.
        study: Study Instance UID, to fetch it by.
    """

    image: str
    state: str
    why: str = ""
    study: str = ""


class Catalogue:
    """Two files; writers hold the datastore's lock.

    Args:
        folder: the service folder.
    """

    def __init__(self, folder: Path) -> None:
        self._images_file = Path(folder) / "archive.json"
        self._segs_file = Path(folder) / "segmentations.json"
        self._stamp: object = object()
        self._images: dict[str, SeriesEntry] = {}
        self._segs: dict[str, SegRecord] = {}

    @property
    def images(self) -> Mapping[str, SeriesEntry]:
        """Image series by UID."""
        self._read()
        return self._images

    @property
    def segmentations(self) -> Mapping[str, SegRecord]:
        """Segmentation series by UID."""
        self._read()
        return self._segs

    @property
    def known(self) -> bool:
        """Whether the archive was ever listed."""
        return self._images_file.exists()

    def stamp(self) -> object:
        """A value that changes with the files."""
        return tuple(_stamp(file) for file in (self._images_file, self._segs_file))

    def set_images(self, images: Mapping[str, SeriesEntry]) -> None:
        """Replace the list of images; a list that is the same is not written."""
        if not self.known or dict(images) != dict(self.images):
            write_json(self._images_file, {uid: entry.to_dict() for uid, entry in sorted(images.items())})

    def set_segmentation(self, uid: str, record: SegRecord) -> None:
        """Note what became of a segmentation."""
        segs = {**self.segmentations, uid: record}
        write_json(self._segs_file, {key: vars(value) for key, value in segs.items()})

    def forget_segmentation(self, uid: str) -> None:
        """A segmentation that went away is new when it comes back."""
        segs = {key: value for key, value in self.segmentations.items() if key != uid}
        write_json(self._segs_file, {key: vars(value) for key, value in segs.items()})

    def _read(self) -> None:
        """Read the files where another process, or this one, changed them."""
        stamp = self.stamp()
        if stamp == self._stamp:
            return
        images: dict[str, Any] = read_json(self._images_file, default={})
        segs: dict[str, Any] = read_json(self._segs_file, default={})
        self._images = {uid: SeriesEntry(**value) for uid, value in images.items()}
        self._segs = {uid: SegRecord(**value) for uid, value in segs.items()}
        self._stamp = stamp


def archive_folder(url: str, model_dir: Path) -> Path:
    """Our own folder for an archive: in `MONAI_LABEL_DICOMWEB_CACHE_PATH`, else with the study's models."""
    cache = monai_settings.MONAI_LABEL_DICOMWEB_CACHE_PATH
    return Path(cache) / study_key(url) if cache else model_dir / study_key(url) / "archive"


def check_archive(url: str, model_dir: Path) -> None:
    """Before a start: whether an archive answers at the address, or is known well enough to go on without it.

    Raises:
        ConflictError: neither.
    """
    try:
        Archive(url).check()
    except ConflictError as error:
        if not Catalogue(archive_folder(url, model_dir) / SERVICE_FOLDER).known:
            raise
        logger.warning("%s", error)


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        status = file.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_size, status.st_ino
