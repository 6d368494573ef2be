"""A DICOM series as one volume: slices in the order of their places, whatever the order and kind of the files.

Classic series (one file per slice), enhanced multi-frame objects, and radiographs without a place in space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from pydicom.dataset import Dataset

from medseg.errors import UnusableInputError
from medseg.server.dicom.grid import DEFAULT_ORIENTATION, SeriesGrid, Slice, normal_of
from medseg.transforms.radiograph import is_picture, pixel_size

SAME_PLACE = 1e-3  # ours: mm; closer planes are repetitions of one place (phases, echoes)

KEPT = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    *("ReferringPhysicianName", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "SeriesDate", "Modality"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "BodyPartExamined", "Laterality", "SpecificCharacterSet"),
)
"""What a derived object takes over from its source."""


@dataclass(frozen=True)
class Series:
    """A series that was read.

    Attributes:
        volume: (1, columns, rows, slices) with RAS affine; (1, columns, rows) with 3x3 affine for a radiograph.
        grid: its planes.
        header: the attributes `KEPT` of its first object.
        remarks: sentences on what was left out.
    """

    volume: MetaTensor
    grid: SeriesGrid
    header: Dataset
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Plane:
    file: Path
    index: int  # of the frame in its file, from 0
    rows: int
    columns: int
    orientation: tuple[float, ...] | None
    position: tuple[float, float, float] | None
    spacing: tuple[float, float]  # between columns, between rows
    thickness: float
    instance: str
    sop_class: str
    frame: int | None
    order: int
    rescale: tuple[float, float] = (1.0, 0.0)  # slope and intercept that the decoder leaves out


def read_series(files: Sequence[Path]) -> Series:
    """Read the files of one series.

    Raises:
        UnusableInputError: no image in it, or colour.
    """
    headers = [(Path(f), pydicom.dcmread(f, stop_before_pixels=True, force=True)) for f in sorted(files)]
    images = [(f, ds) for f, ds in headers if "Rows" in ds and "Columns" in ds]
    if not images:
        raise UnusableInputError(f"the series holds no image in its {len(headers)} objects")
    first = images[0][1]
    if int(first.get("SamplesPerPixel", 1)) != 1:
        raise UnusableInputError("the series is in colour; medseg reads grey images from an archive")
    planes, remarks = _one_stack([plane for file, ds in images for plane in _planes(file, ds)])
    grid = _grid(planes, is_picture(str(first.get("Modality", "")), planes[0].orientation))
    array = _pixels(planes)
    header = Dataset()
    for key in KEPT:
        if key in first:
            header[key] = first[key]
    return Series(_tensor(array, grid), grid, header, (*remarks, *grid.remarks()))


def _planes(file: Path, ds: Dataset) -> Iterator[_Plane]:
    """The planes of one object."""
    frames = ds.get("PerFrameFunctionalGroupsSequence")
    count = int(ds.get("NumberOfFrames", 1) or 1)
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    rescales = _rescales(frames or [], count)
    for index in range(count):
        groups = [frames[index], shared] if frames and index < len(frames) else [shared]
        position = _find(ds, groups, "PlanePositionSequence", "ImagePositionPatient")
        orientation = _find(ds, groups, "PlaneOrientationSequence", "ImageOrientationPatient")
        spacing = _find(ds, groups, "PixelMeasuresSequence", "PixelSpacing")
        thickness = _find(ds, groups, "PixelMeasuresSequence", "SpacingBetweenSlices") or _find(
            ds, groups, "PixelMeasuresSequence", "SliceThickness"
        )
        yield _Plane(
            file=file,
            index=index,
            rows=int(ds.Rows),
            columns=int(ds.Columns),
            orientation=_floats(orientation) if orientation and len(orientation) == 6 else None,
            position=_floats(position)[:3] if position and len(position) == 3 else None,  # type: ignore[arg-type]
            spacing=pixel_size(
                *(
                    _floats(v) if v else None
                    for v in (spacing, ds.get("ImagerPixelSpacing"), ds.get("PixelAspectRatio"))
                )
            ),
            thickness=abs(float(thickness or 0)) or 1.0,
            instance=str(ds.SOPInstanceUID),
            sop_class=str(ds.SOPClassUID),
            frame=index + 1 if "NumberOfFrames" in ds else None,
            order=int(ds.get("InstanceNumber") or 0),
            rescale=rescales[index],
        )


def _rescales(frames: Sequence[Dataset], count: int) -> list[tuple[float, float]]:
    """What each frame still needs: GDCM applies the slope and intercept of the first frame to all of them."""
    items = [(f.get("PixelValueTransformationSequence") or [None])[0] for f in frames]
    if len(items) < count or any(item is None for item in items):
        return [(1.0, 0.0)] * count  # one for all frames, or for the whole object, which GDCM applies
    stated = [(float(item.get("RescaleSlope", 1)), float(item.get("RescaleIntercept", 0))) for item in items]
    slope, intercept = stated[0]
    if not slope:
        raise UnusableInputError("the series states a rescale slope of 0, which leaves nothing of its values")
    return [(own / slope, offset - intercept * own / slope) for own, offset in stated]


def _find(ds: Dataset, groups: Sequence[Dataset], sequence: str, key: str) -> Any:
    """An attribute from the first functional group that has it, else from the object itself."""
    for group in groups:
        items = group.get(sequence)
        if items and items[0].get(key) is not None:
            return items[0].get(key)
    return ds.get(key)


def _one_stack(planes: list[_Plane]) -> tuple[list[_Plane], tuple[str, ...]]:
    """The planes of the largest parallel stack, one per place, in order."""
    kinds = [(p.rows, p.columns, p.position is None, _rounded(p.orientation)) for p in planes]
    kind, count = Counter(kinds).most_common(1)[0]
    stack = [plane for plane, own in zip(planes, kinds, strict=True) if own == kind]
    remarks = []
    if count < len(planes):
        remarks.append(f"{len(planes) - count} of {len(planes)} slices have another size or direction and are left out")
    if stack[0].position is None or stack[0].orientation is None:
        stack.sort(key=lambda p: (p.order, p.instance, p.index))
        if len(stack) > 1:
            remarks.append(f"the slices tell no place; the first of {len(stack)} is shown")
        return stack[:1], tuple(remarks)
    normal = normal_of(stack[0].orientation)
    stack.sort(key=lambda p: (float(np.dot(p.position or (), normal)), p.order, p.instance, p.index))
    places = np.array([np.dot(p.position or (), normal) for p in stack])
    fresh = np.concatenate([[True], np.diff(places) > SAME_PLACE])
    if not fresh.all():
        remarks.append(f"{int((~fresh).sum())} slices repeat a place (phases, echoes); the first of each is shown")
    return [plane for plane, new in zip(stack, fresh, strict=True) if new], tuple(remarks)


def _grid(planes: Sequence[_Plane], picture: bool) -> SeriesGrid:
    first = planes[0]
    return SeriesGrid(
        columns=first.columns,
        rows=first.rows,
        orientation=first.orientation or DEFAULT_ORIENTATION,
        spacing=first.spacing,
        thickness=first.thickness,
        slices=tuple(Slice(p.instance, p.sop_class, p.frame, p.position or (0.0, 0.0, 0.0)) for p in planes),
        placed=first.position is not None and first.orientation is not None and not (picture and len(planes) == 1),
    )


def _pixels(planes: Sequence[_Plane]) -> np.ndarray:
    """(slices, rows, columns) with the modality's rescaling applied."""
    decoded: dict[Path, np.ndarray] = {}
    slices = []
    for plane in planes:
        if plane.file not in decoded:
            decoded = {plane.file: _decode(plane.file)}  # one file at a time stays in memory
        values, (slope, intercept) = decoded[plane.file][plane.index], plane.rescale
        slices.append(values if plane.rescale == (1.0, 0.0) else values * slope + intercept)
    return np.stack(slices)


def _decode(file: Path) -> np.ndarray:
    """(frames, rows, columns); GDCM applies the rescaling, and turns MONOCHROME1 so that bones are bright."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UnusableInputError(f"an object of the series cannot be decoded: {reason}") from error
    return np.asarray(array if array.ndim == 3 else array[None])


def _tensor(array: np.ndarray, grid: SeriesGrid) -> MetaTensor:
    values = array.astype(np.float32)
    whole = bool((values == np.rint(values)).all()) and float(np.abs(values).max(initial=0)) < 2**15
    kept = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 1, 0)).astype(np.int16 if whole else np.float32))
    if grid.placed:
        return MetaTensor(kept[None], affine=torch.from_numpy(grid.affine()))
    return MetaTensor(kept[None, :, :, 0], affine=torch.diag(torch.tensor([*grid.spacing, 1.0], dtype=torch.float64)))


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _rounded(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return tuple(round(v, 3) + 0.0 for v in values) if values else None
