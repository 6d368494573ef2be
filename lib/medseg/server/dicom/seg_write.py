"""Writing DICOM Segmentation objects: one binary segment per label, one frame per plane that holds it.

Frames are tied to the very slices of the source series, not to an evenly spaced volume, so oblique, unevenly spaced and
multi-frame series come back exactly (DICOM PS3.3 A.51, C.8.20).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage, generate_uid

from medseg import __version__
from medseg.errors import UnusableInputError
from medseg.files import write_atomically
from medseg.server.dicom.codes import LabelCodes, coded, dicom_lab
from medseg.server.dicom.decimal_strings import decimals
from medseg.server.dicom.grid import SeriesGrid, Slice

ALGORITHM_TYPES = ("MANUAL", "SEMIAUTOMATIC", "AUTOMATIC")
DERIVATION = ("113076", "DCM", "Segmentation")
PURPOSE = ("121322", "DCM", "Source image for image processing operation")
FROM_SOURCE = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    *("ReferringPhysicianName", "PositionReferenceIndicator", "BodyPartExamined"),
)
UTF8 = "ISO_IR 192"  # label names and authors may hold any letter, whatever the source's character set has
LONGEST_NAME = 64  # characters, DICOM PS3.5 6.2, LO
MUST_BE_THERE = (  # type 2: may be empty
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)


@dataclass(frozen=True)
class SegmentationFacts:
    """What a segmentation says of itself.

    Attributes:
        author: who made it; the person's name in DICOM.
        description: shown in lists of series.
        algorithm: one of `ALGORITHM_TYPES`.
        model: name of the model, where one took part.
    """

    author: str = ""
    description: str = "medseg"
    algorithm: str = "SEMIAUTOMATIC"
    model: str = "medseg"


def segmentation(
    mask: np.ndarray,
    labels: Mapping[str, int],
    source: SeriesGrid,
    header: Dataset,
    codes: LabelCodes | None = None,
    facts: SegmentationFacts = SegmentationFacts(),
) -> Dataset:
    """A DICOM Segmentation of a mask.

    Args:
        mask: (columns, rows, slices) whole numbers on the source's grid.
        labels: name -> value. Every label becomes a segment, also one without a voxel: the numbering stays the same in
            all objects, and viewers offer the whole list.
        source: planes of the source series.
        header: attributes of the source (`series.KEPT`).
        codes: codes and colours of labels.
        facts: author and description.

    Returns:
        A data set that `write_dicom` and a DICOMweb client can store.

    Raises:
        ValueError: the mask has another shape, or labels are not numbered 1..N.
        UnusableInputError: a label's name is too long.
    """
    if tuple(mask.shape) != source.shape:
        raise ValueError(f"the mask has {tuple(mask.shape)} voxels, its series {source.shape}")
    if sorted(labels.values()) != list(range(1, len(labels) + 1)):
        raise ValueError(f"labels must be numbered 1..{len(labels)}, got {dict(labels)}")
    if long := next((name for name in labels if len(name) > LONGEST_NAME), None):
        raise UnusableInputError(
            f"label name {long!r} has {len(long)} characters; DICOM has room for {LONGEST_NAME}, rename the label"
        )
    frames = [(v, k) for v in sorted(labels.values()) for k in np.flatnonzero((mask == v).any(axis=(0, 1))).tolist()]
    frames = frames or [(1, 0)]  # an object without a frame is not allowed: an empty one says that nothing is marked
    ds = _general(source, header, facts)
    ds.SegmentSequence = Items(
        [
            _segment(name, value, codes or LabelCodes(), facts)
            for name, value in sorted(labels.items(), key=lambda x: x[1])
        ]
    )
    _dimensions(ds)
    shared = Dataset()
    shared.PlaneOrientationSequence = Items([_plane_orientation(source)])
    shared.PixelMeasuresSequence = Items([_pixel_measures(source)])
    ds.SharedFunctionalGroupsSequence = Items([shared])
    ds.PerFrameFunctionalGroupsSequence = Items([_frame(v, k, source.slices[k]) for v, k in frames])
    ds.NumberOfFrames = len(frames)
    bits = np.packbits(np.concatenate([(mask[:, :, k] == v).T.ravel() for v, k in frames]), bitorder="little").tobytes()
    ds.PixelData = bits + b"\x00" * (len(bits) % 2)
    ds["PixelData"].VR = "OB"
    return ds


def write_dicom(path: Path, ds: Dataset) -> Path:
    """Write a data set as a DICOM file, atomically."""
    return write_atomically(path, lambda temporary: ds.save_as(temporary, write_like_original=False))


def _general(source: SeriesGrid, header: Dataset, facts: SegmentationFacts) -> Dataset:
    ds = Dataset()
    for key in FROM_SOURCE:
        if key in header:
            ds[key] = header[key]
        elif key in MUST_BE_THERE:
            setattr(ds, key, "")
    ds.SpecificCharacterSet = UTF8
    moment = datetime.now()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = SegmentationStorage, generate_uid(), generate_uid()
    ds.FrameOfReferenceUID = header.get("FrameOfReferenceUID") or generate_uid()
    ds.PositionReferenceIndicator = ds.get("PositionReferenceIndicator") or ""
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "SEG", 300, 1
    ds.SeriesDescription = facts.description[:64]
    for kind in ("Series", "Content", "InstanceCreation"):
        setattr(ds, f"{kind}Date", moment.strftime("%Y%m%d"))
        setattr(ds, f"{kind}Time", moment.strftime("%H%M%S.%f"))
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = "medseg", "medseg", __version__
    ds.DeviceSerialNumber = "1"
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = source.rows, source.columns
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = ds.PixelRepresentation = 0
    ds.LossyImageCompression, ds.SegmentationType = "00", "BINARY"
    ds.ContentLabel, ds.ContentDescription = "SEGMENTATION", facts.description[:64]
    ds.ContentCreatorName = facts.author[:64]
    ds.ReferencedSeriesSequence = Items([_referenced_series(source, header)])
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.is_little_endian, ds.is_implicit_VR = True, False
    ds.preamble = b"\x00" * 128  # without it, a client that stores the object sends no DICOM file
    return ds


def _referenced_series(source: SeriesGrid, header: Dataset) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = header.SeriesInstanceUID
    instances = dict.fromkeys((s.sop_class, s.instance) for s in source.slices)
    item.ReferencedInstanceSequence = Items([_reference(*instance) for instance in instances])
    return item


def _reference(sop_class: str, instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    return item


def _segment(name: str, value: int, codes: LabelCodes, facts: SegmentationFacts) -> Dataset:
    style = codes.style(name, value)
    item = Dataset()
    item.SegmentNumber, item.SegmentLabel, item.SegmentDescription = value, name, name
    item.SegmentAlgorithmType = facts.algorithm
    if facts.algorithm != "MANUAL":
        item.SegmentAlgorithmName = facts.model[:64]
    item.SegmentedPropertyCategoryCodeSequence = Items([coded(style.category)])
    item.SegmentedPropertyTypeCodeSequence = Items([coded(style.type)])
    item.RecommendedDisplayCIELabValue = dicom_lab(style.color)
    return item


def _dimensions(ds: Dataset) -> None:
    """Frames are ordered by segment, then by place."""
    organization = Dataset()
    organization.DimensionOrganizationUID = generate_uid()
    ds.DimensionOrganizationSequence = Items([organization])
    pointers = ((0x0062000B, 0x0062000A, "ReferencedSegmentNumber"), (0x00200032, 0x00209113, "ImagePositionPatient"))
    items = []
    for pointer, group, label in pointers:
        item = Dataset()
        item.DimensionOrganizationUID = organization.DimensionOrganizationUID
        item.DimensionIndexPointer, item.FunctionalGroupPointer = pointer, group
        item.DimensionDescriptionLabel = label
        items.append(item)
    ds.DimensionIndexSequence = Items(items)


def _plane_orientation(source: SeriesGrid) -> Dataset:
    item = Dataset()
    item.ImageOrientationPatient = decimals(source.orientation)
    return item


def _pixel_measures(source: SeriesGrid) -> Dataset:
    item = Dataset()
    item.PixelSpacing = decimals((source.spacing[1], source.spacing[0]))
    item.SliceThickness, item.SpacingBetweenSlices = decimals((source.thickness, source.gap))
    return item


def _frame(segment: int, index: int, plane: Slice) -> Dataset:
    item, content, position, identification = Dataset(), Dataset(), Dataset(), Dataset()
    content.DimensionIndexValues = [segment, index + 1]
    position.ImagePositionPatient = decimals(plane.position)
    identification.ReferencedSegmentNumber = segment
    item.FrameContentSequence = Items([content])
    item.PlanePositionSequence = Items([position])
    item.SegmentIdentificationSequence = Items([identification])
    image = _reference(plane.sop_class, plane.instance)
    if plane.frame is not None:
        image.ReferencedFrameNumber = plane.frame
    image.PurposeOfReferenceCodeSequence = Items([coded(PURPOSE)])
    derivation = Dataset()
    derivation.DerivationCodeSequence = Items([coded(DERIVATION)])
    derivation.SourceImageSequence = Items([image])
    item.DerivationImageSequence = Items([derivation])
    return item
