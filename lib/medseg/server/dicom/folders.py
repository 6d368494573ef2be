"""The folder that stands for an archive: images of the catalogue, whether fetched yet or not, and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.server.dicom.catalogue import Catalogue
from medseg.server.folders import SERVICE_FOLDER, Known, Scan, StudyFolders

IMAGE_SUFFIX = ".nii.gz"
ARCHIVED = "archive"
"""Key of a label's info: the segmentation in the archive that it is kept as, `{series, instance, study}`."""


class ArchiveFolders(StudyFolders):
    """`images/`, `labels/<tag>/` and the service folder below one folder of our own.

    Args:
        root: the folder; created where it does not exist.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, (IMAGE_SUFFIX,))
        self.plain = False
        self.images_dir = self.root / "images"
        self.in_place: dict[str, Path] = {}
        self.images_dir.mkdir(exist_ok=True)
        (self.root / SERVICE_FOLDER).mkdir(exist_ok=True)
        self.catalogue = Catalogue(self.service)

    def stamp(self) -> Any:
        """Changes with the files and with the catalogue."""
        return (super().stamp(), self.catalogue.stamp())

    def scan(self, known: Known) -> Scan:
        """The catalogue's images; labels that are here, and labels that lie in the archive only.

        Args:
            known: records of the index.
        """
        scan = Scan(images={uid: self.image_path(uid, IMAGE_SUFFIX) for uid in sorted(self.catalogue.images)})
        for folder in self._tag_folders():
            saved = self._label_files(folder, folder.name, known, scan)
            if saved:
                scan.labels[folder.name] = saved
        for image, record in known.items():
            for tag, label in record["labels"].items():
                if image in scan.images and label["info"].get(ARCHIVED):
                    files = scan.labels.setdefault(tag, {})
                    files.setdefault(image, self.label_path(tag, image, label["ext"]))
        refused = [r for r in self.catalogue.segmentations.values() if r.why]
        scan.problems.extend(f"a segmentation of image {r.image or 'unknown'} is not used: {r.why}" for r in refused)
        return scan

    def header_path(self, image_id: str) -> Path:
        """Where the planes and the header of a fetched series are kept."""
        return self.service / "series" / f"{image_id}.json"
