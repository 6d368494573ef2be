"""Writing a volume as a DICOM series, one file per slice: phantoms for an archive, volumes for a PACS."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medseg.errors import UnusableInputError
from medseg.server.dicom.decimal_strings import decimals
from medseg.server.dicom.grid import LPS_TO_RAS

STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage}


@dataclass(frozen=True)
class ExportFacts:
    """What the files say of the patient and the series.

    Attributes:
        patient: Patient ID, and name.
        modality: `CT` or `MR`.
        description: of the series.
        study: Study Instance UID; empty: a new one.
    """

    patient: str = "PHANTOM"
    modality: str = "CT"
    description: str = "phantom"
    study: str = ""


def write_series(volume: MetaTensor, folder: Path, facts: ExportFacts = ExportFacts()) -> str:
    """Write (1, x, y, z) as a series; values are rounded to 16 bits.

    Slices go along the third axis. An affine whose axes are not at right angles cannot be told in DICOM.

    Returns:
        The Series Instance UID.

    Raises:
        UnusableInputError: not one grey 3D volume, a sheared grid, or another modality.
    """
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise UnusableInputError(f"a series is written from (1, x, y, z), got {tuple(volume.shape)}")
    if facts.modality not in STORAGE:
        raise UnusableInputError(f"modality {facts.modality!r} cannot be written; choose one of {', '.join(STORAGE)}")
    lps = LPS_TO_RAS @ volume.affine.cpu().numpy().astype(np.float64)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    if float(np.abs(direction.T @ direction - np.eye(3)).max()) > 1e-3:
        raise UnusableInputError("the volume's axes are not at right angles, which DICOM slices are; resample it first")
    common = _common(facts, spacing, direction)
    values = np.clip(np.rint(volume.as_tensor().cpu().numpy()[0]), -(2**15), 2**15 - 1).astype("<i2")
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(values.shape[2]):
        position = (lps @ [0, 0, k, 1])[:3]
        _write_slice(folder / f"{k:04d}.dcm", common, k, position, values[:, :, k].T)
    return str(common.SeriesInstanceUID)


def _common(facts: ExportFacts, spacing: np.ndarray, direction: np.ndarray) -> Dataset:
    ds = Dataset()
    moment = datetime.now()
    ds.SOPClassUID = STORAGE[facts.modality]
    ds.PatientID = ds.PatientName = facts.patient
    ds.PatientBirthDate = ds.PatientSex = ds.StudyID = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyInstanceUID = facts.study or generate_uid()
    ds.SeriesInstanceUID, ds.FrameOfReferenceUID = generate_uid(), generate_uid()
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = moment.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = moment.strftime("%H%M%S")
    ds.Modality, ds.SeriesNumber, ds.Manufacturer = facts.modality, 1, "medseg"
    ds.StudyDescription = ds.SeriesDescription = facts.description[:64]
    ds.PositionReferenceIndicator = ""
    ds.ImageOrientationPatient = decimals([*direction[:, 0], *direction[:, 1]])
    ds.PixelSpacing = decimals([spacing[1], spacing[0]])
    ds.SliceThickness = ds.SpacingBetweenSlices = decimals([spacing[2]])[0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    ds.RescaleIntercept, ds.RescaleSlope = 0, 1
    ds.ImageType = ["DERIVED", "SECONDARY"]
    return ds


def _write_slice(path: Path, common: Dataset, index: int, position: np.ndarray, pixels: np.ndarray) -> None:
    ds = Dataset()
    ds.update(common)
    ds.SOPInstanceUID, ds.InstanceNumber = generate_uid(), index + 1
    ds.ImagePositionPatient = decimals(position)
    ds.Rows, ds.Columns = pixels.shape
    low, high = float(pixels.min()), float(pixels.max())
    ds.WindowCenter, ds.WindowWidth = decimals([(low + high) / 2, max(high - low, 1.0)])
    ds.PixelData = np.ascontiguousarray(pixels).tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.is_little_endian, ds.is_implicit_VR = True, False
    ds.save_as(path, write_like_original=False)
