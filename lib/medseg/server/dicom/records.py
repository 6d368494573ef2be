"""What the journal says of an archive's images and segmentations."""

from __future__ import annotations

import time
from typing import Any

from medseg.server.dicom.archive import SeriesEntry
from medseg.server.dicom.folders import ARCHIVED, IMAGE_SUFFIX
from medseg.server.dicom.seg_read import SegFacts
from medseg.server.journal import make_entry


def image_added(entry: SeriesEntry) -> dict[str, Any]:
    """Journal entry of a new image, with the identifiers that viewers open it by."""
    info = {
        "SeriesInstanceUID": entry.uid,
        "StudyInstanceUID": entry.study,
        "PatientID": entry.patient,
        "Modality": entry.modality,
        "StudyDate": entry.date,
        "SeriesDescription": entry.description,
        "patient": entry.patient or entry.study,
        "ts": int(time.time()),
        "name": f"{entry.uid}{IMAGE_SUFFIX}",
    }
    return make_entry("image_added", image=entry.uid, ext=IMAGE_SUFFIX, info=info, found=True)


def label_of(entry: SeriesEntry, facts: SegFacts, author: str) -> dict[str, Any]:
    """Info of the label that a segmentation is."""
    return {
        ARCHIVED: {"series": entry.uid, "instance": facts.instance, "study": entry.study},
        "author": author,
        "client_id": author,
        "created": facts.created,
        "description": facts.description,
        "ts": int(time.time()),
    }
