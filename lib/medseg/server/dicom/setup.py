"""Opening the archive that a server was started with."""

from __future__ import annotations

from pathlib import Path

from monailabel.config import settings as monai_settings

from medseg.server.dicom.archive import Archive
from medseg.server.dicom.catalogue import archive_folder
from medseg.server.dicom.codes import LabelCodes
from medseg.server.dicom.datastore import DicomWebDatastore
from medseg.server.settings import AppSettings


def open_archive(settings: AppSettings, model_dir: Path, url: str, labels: dict[str, int]) -> DicomWebDatastore:
    """The datastore over a DICOMweb archive.

    Images, labels, history and journal are kept in `archive_folder`.
    `MONAI_LABEL_DICOMWEB_SEARCH_FILTER` narrows the search where somebody changed it; which modalities count is said by
    `--conf modalities`.

    Raises:
        ConflictError: the archive does not answer.
        MedsegError: the file of label codes is wrong.
    """
    stated = dict(monai_settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER)
    default = type(monai_settings).model_fields["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"].default
    filters = {} if stated == default else {k: v for k, v in stated.items() if k != "Modality"}
    modality = stated.get("Modality") if stated != default else None
    return DicomWebDatastore(
        Archive(url, filters),
        archive_folder(url, Path(model_dir)),
        labels,
        modalities=(str(modality),) if modality else settings.modalities,
        codes=LabelCodes(Path(settings.label_codes) if settings.label_codes else None),
        auto_reload=monai_settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
    )
