"""Reading DICOM Segmentation objects, whoever wrote them, onto the grid of the series they refer to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from pydicom.dataset import Dataset

from medseg.errors import MedsegError, UnusableInputError
from medseg.server.dicom.grid import LPS_TO_RAS, SeriesGrid, normal_of

NEAR = 0.05  # ours: of a voxel; rounding in headers stays below
PARALLEL = 1e-3  # ours: cosines in headers have 3..6 digits
MOST_PLANES = 2000  # ours: a wrongly stated distance of planes must not fill the memory


@contextmanager
def _well_formed() -> Iterator[None]:
    """Elements that are missing, empty or of another kind make a sentence."""
    try:
        yield
    except MedsegError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UnusableInputError(
            f"the segmentation is malformed ({type(error).__name__}: {error}); store it again from the program it is of"
        ) from error


@dataclass(frozen=True)
class SegFacts:
    """What a segmentation says of itself; its pixels are not needed.

    Attributes:
        series: its own Series Instance UID.
        instance: SOP Instance UID.
        image: Series Instance UID of the images it belongs to; empty where it tells none.
        sources: SOP Instance UIDs of the images its frames were drawn on, where it tells them.
        names: segment number -> label name.
        author: who made it; empty where unknown.
        created: DICOM date and time, for ordering.
        description: of its series.
    """

    series: str
    instance: str
    image: str
    names: dict[int, str]
    author: str
    created: str
    description: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadMask:
    """A segmentation as a label map.

    Attributes:
        mask: (1, columns, rows, planes) int16 with RAS affine; on the series' grid where the frames lie on its slices,
            else on the frames' own.
        exact: whether it is on the series' grid.
        remarks: sentences for the annotator.
    """

    mask: MetaTensor
    exact: bool
    remarks: tuple[str, ...]


@_well_formed()
def seg_facts(ds: Dataset) -> SegFacts:
    """Facts of a segmentation object or of its metadata.

    Raises:
        UnusableInputError: it is malformed.
    """
    names = {int(s.SegmentNumber): _name(s) for s in ds.get("SegmentSequence", []) if "SegmentNumber" in s}
    date = ds.get("ContentDate") or ds.get("SeriesDate") or ""
    time = ds.get("ContentTime") or ds.get("SeriesTime") or ""
    author = ds.get("ContentCreatorName") or ds.get("OperatorsName") or ""
    return SegFacts(
        series=str(ds.SeriesInstanceUID),
        instance=str(ds.SOPInstanceUID),
        image=_referenced_series(ds),
        names={number: name for number, name in names.items() if name},
        author=_person(str(author)),
        created=f"{date}{time}",
        description=str(ds.get("SeriesDescription") or ""),
        sources=_sources(ds),
    )


@_well_formed()
def read_segmentation(ds: Dataset, grid: SeriesGrid) -> ReadMask:
    """The label map of a segmentation: segment numbers as values.

    Raises:
        UnusableInputError: it is malformed, no frames, no geometry, or frames that no volume can be made of.
    """
    frames, numbers = _decoded(ds)
    planes = _planes(ds, len(frames), grid)
    where = _on_slices(planes, grid)
    if where is not None and frames.shape[1:] == (grid.rows, grid.columns) and _on_pixels(planes, where, grid):
        mask, overlap = _fill(frames, numbers, where, len(grid.slices))
        return ReadMask(_tensor(mask, grid.affine()), True, _overlap_remark(overlap))
    index, affine = _on_stack(planes, where, grid) if where is not None and grid.placed else _own_stack(planes, grid)
    mask, overlap = _fill(frames, numbers, index, max(index) + 1)
    return ReadMask(_tensor(mask, affine), False, _overlap_remark(overlap))


@dataclass(frozen=True)
class _Plane:
    position: np.ndarray
    orientation: tuple[float, ...]
    spacing: tuple[float, float]  # between columns, between rows
    step: float | None  # to the next plane, where it is stated
    thickness: float | None
    source: tuple[str, int | None] | None


def _name(segment: Dataset) -> str:
    """The segment's label, else the meaning of its code."""
    label = str(segment.get("SegmentLabel") or "").strip()
    kinds = segment.get("SegmentedPropertyTypeCodeSequence") or [Dataset()]
    return label or str(kinds[0].get("CodeMeaning") or "").strip()


def _person(name: str) -> str:
    """`Family^Given` as people write it."""
    family, _, given = name.partition("=")[0].partition("^")
    return " ".join(f"{given.replace('^', ' ')} {family}".split())


def _referenced_series(ds: Dataset) -> str:
    series = ds.get("ReferencedSeriesSequence") or []
    return str(series[0].get("SeriesInstanceUID") or "") if series else ""


def _sources(ds: Dataset) -> tuple[str, ...]:
    groups = [*(ds.get("SharedFunctionalGroupsSequence") or ()), *(ds.get("PerFrameFunctionalGroupsSequence") or ())]
    images = [image for group in groups for image in _source_images(group)]
    return tuple(dict.fromkeys(str(i.ReferencedSOPInstanceUID) for i in images if i.get("ReferencedSOPInstanceUID")))


def _source_images(group: Dataset) -> list[Dataset]:
    derivations = group.get("DerivationImageSequence") or []
    return [image for derivation in derivations for image in derivation.get("SourceImageSequence") or []]


def _decoded(ds: Dataset) -> tuple[np.ndarray, list[int]]:
    """Frames (n, rows, columns) and the segment of each; 0: the values are themselves segment numbers."""
    try:
        pixels = np.asarray(ds.pixel_array)
    except Exception as error:  # pydicom raises whatever the decoder does
        raise UnusableInputError(f"the segmentation's pixels cannot be decoded: {error}") from error
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    kind = str(ds.get("SegmentationType", "BINARY"))
    groups = ds.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != len(pixels):
        raise UnusableInputError(f"the segmentation has {len(pixels)} frames but tells the place of {len(groups)}")
    if kind == "LABELMAP":
        return pixels.astype(np.int16), [0] * len(pixels)
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    numbers = [int(_first(g, shared, "SegmentIdentificationSequence", "ReferencedSegmentNumber") or 1) for g in groups]
    if kind == "FRACTIONAL":
        pixels = pixels.astype(np.int32) * 2 > int(ds.get("MaximumFractionalValue", 255))  # stored in 8 bits
    return (pixels > 0).astype(np.int16), numbers


def _first(frame: Dataset, shared: Dataset, sequence: str, key: str) -> Any:
    for group in (frame, shared):
        items = group.get(sequence)
        if items and items[0].get(key) is not None:
            return items[0].get(key)
    return None


def _planes(ds: Dataset, count: int, grid: SeriesGrid) -> list[_Plane]:
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    planes = []
    for group in ds.PerFrameFunctionalGroupsSequence[:count]:
        position = _first(group, shared, "PlanePositionSequence", "ImagePositionPatient")
        orientation = _first(group, shared, "PlaneOrientationSequence", "ImageOrientationPatient")
        spacing = _first(group, shared, "PixelMeasuresSequence", "PixelSpacing")
        if grid.placed and (position is None or orientation is None):
            raise UnusableInputError("the segmentation does not tell where its frames lie")
        row, column = (float(v) for v in spacing) if spacing else (grid.spacing[1], grid.spacing[0])
        planes.append(
            _Plane(
                position=np.array([float(v) for v in position or (0, 0, 0)]),
                orientation=tuple(float(v) for v in orientation or grid.orientation),
                spacing=(column, row),
                step=_length(_first(group, shared, "PixelMeasuresSequence", "SpacingBetweenSlices")),
                thickness=_length(_first(group, shared, "PixelMeasuresSequence", "SliceThickness")),
                source=_source(group),
            )
        )
    return planes


def _length(value: Any) -> float | None:
    return abs(float(value)) or None if value is not None else None


def _source(group: Dataset) -> tuple[str, int | None] | None:
    """The image a frame was drawn on."""
    images = _source_images(group)
    if len(images) != 1 or "ReferencedSOPInstanceUID" not in images[0]:
        return None
    number = images[0].get("ReferencedFrameNumber")
    number = number[0] if isinstance(number, Sequence) and not isinstance(number, str) else number
    return str(images[0].ReferencedSOPInstanceUID), int(number) if number else None


def _on_slices(planes: Sequence[_Plane], grid: SeriesGrid) -> list[int] | None:
    """The slice of the series that each frame lies on, whatever its pixels; None where any lies between or across."""
    by_source = {(s.instance, s.frame): k for k, s in enumerate(grid.slices)}
    offsets, found = grid.offsets, []
    for plane in planes:
        told = by_source.get(plane.source) if plane.source else None
        if not grid.placed:
            found.append(told or 0)
            continue
        if not np.linalg.norm(np.cross(normal_of(plane.orientation), grid.normal)) <= PARALLEL:
            return None
        nearest = int(np.abs(offsets - plane.position @ grid.normal).argmin()) if told is None else told
        if abs(plane.position @ grid.normal - offsets[nearest]) > NEAR * grid.gap:
            return None
        found.append(nearest)
    return found


def _on_pixels(planes: Sequence[_Plane], where: Sequence[int], grid: SeriesGrid) -> bool:
    """Whether the pixels of frames on the series' slices are the series' too."""
    if not grid.placed:
        return True
    for plane, k in zip(planes, where, strict=True):
        aligned = np.allclose(plane.orientation, grid.orientation, atol=PARALLEL)
        if not aligned or not np.allclose(plane.spacing, grid.spacing, rtol=PARALLEL):
            return False
        away = plane.position - np.array(grid.slices[k].position)
        if np.linalg.norm(away - (away @ grid.normal) * grid.normal) > NEAR * min(grid.spacing):
            return False
    return True


def _fill(frames: np.ndarray, numbers: Sequence[int], where: Sequence[int], planes: int) -> tuple[np.ndarray, int]:
    """(columns, rows, planes) label map, and the number of voxels in several segments."""
    mask = np.zeros((frames.shape[2], frames.shape[1], planes), np.int16)
    overlap = 0
    for frame, number, place in sorted(zip(frames, numbers, where, strict=True), key=lambda item: item[1]):
        inside = frame.T > 0
        overlap += int((inside & (mask[:, :, place] > 0)).sum())
        mask[:, :, place][inside] = number or frame.T[inside]
    return mask, overlap


def _on_stack(planes: Sequence[_Plane], where: Sequence[int], grid: SeriesGrid) -> tuple[list[int], np.ndarray]:
    """Frames with other pixels on the series' slices: the slice of each, and the RAS affine of their stack."""
    _one_direction(planes)
    away = planes[0].position - np.array(grid.slices[where[0]].position)
    origin = np.array(grid.slices[0].position) + away - (away @ grid.normal) * grid.normal
    return list(where), _affine(planes[0], grid.normal * grid.gap, origin)


def _own_stack(planes: Sequence[_Plane], grid: SeriesGrid) -> tuple[list[int], np.ndarray]:
    """Frames on no slices of the series: the place of each in a stack of their own, and its RAS affine.

    The stated distance of planes counts, so that planes left out stay empty. A thickness alone is none: frames may be
    further apart than they are thick.
    """
    _one_direction(planes)
    first = planes[0]
    normal = normal_of(first.orientation)
    offsets = np.array([p.position @ normal for p in planes])
    places = np.unique(np.round(offsets, 3))
    nearest = float(np.diff(places).min()) if len(places) > 1 else first.thickness or grid.gap or max(first.spacing)
    for gap in (first.step, nearest):
        if gap is None or np.ptp(offsets) > MOST_PLANES * gap:
            continue
        index = np.round((offsets - offsets.min()) / gap).astype(int)
        if float(np.abs(offsets - offsets.min() - index * gap).max()) <= 0.25 * gap:
            return index.tolist(), _affine(first, normal * gap, planes[int(offsets.argmin())].position)
    raise UnusableInputError("the segmentation's frames are unevenly spaced and lie on no slices of the image")


def _one_direction(planes: Sequence[_Plane]) -> None:
    if any(not np.allclose(p.orientation, planes[0].orientation, atol=PARALLEL) for p in planes):
        raise UnusableInputError("the segmentation's frames lie in several directions; save it on the image's slices")


def _affine(plane: _Plane, across: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """RAS affine of planes like this one, from LPS."""
    affine = np.eye(4)
    affine[:3, 0] = np.array(plane.orientation[:3]) * plane.spacing[0]
    affine[:3, 1] = np.array(plane.orientation[3:]) * plane.spacing[1]
    affine[:3, 2], affine[:3, 3] = across, origin
    return LPS_TO_RAS @ affine


def _tensor(mask: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(mask)[None], affine=torch.from_numpy(affine))


def _overlap_remark(overlap: int) -> tuple[str, ...]:
    return (f"{overlap} voxels belong to several segments; each keeps the last one",) if overlap else ()


def label_info(facts: SegFacts, mask: MetaTensor) -> list[dict[str, str]]:
    """The names of the values 1..N, as the label contract wants them.

    Raises:
        UnusableInputError: a segment that occurs has no name.
    """
    nameless = [int(v) for v in torch.unique(mask.as_tensor()).tolist() if v and int(v) not in facts.names]
    if nameless:
        raise UnusableInputError(f"segment {nameless[0]} of the segmentation has no name; name it and store it again")
    return [{"name": facts.names.get(number, "")} for number in range(1, max(facts.names, default=0) + 1)]
