"""Reading a label file that a client sent: one label map, whatever form it came in.

Viewers send plain label maps, Slicer's `.seg.nrrd` with named segments on one or several layers, one-hot volumes with a
channel per label, and pictures in grey or colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from medseg.cases import image_suffix
from medseg.errors import UnusableInputError
from medseg.transforms.io import PICTURES, check_affine, read_image

HIGHEST_VALUE = 65535
"""Of a value in a file: 16 bits, as label maps have them; a client may give a name to each (the app counts its own)."""


@dataclass(frozen=True)
class LabelMap:
    """A label map as it was sent.

    Attributes:
        mask: (1, *grid) int32, on the file's own grid.
        names: names that the file itself gives to values; empty where it gives none.
        remarks: sentences for the annotator.
    """

    mask: MetaTensor
    names: dict[int, str]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Segment:
    """One segment of a `.seg.nrrd`: the voxels of a layer that have a value."""

    name: str
    layer: int
    value: int


def read_label(path: Path, channels: int = 0) -> LabelMap:
    """Read a label file.

    Args:
        path: the file.
        channels: number of labels, where it is known; tells whether the first channel of a one-hot file is background.

    Raises:
        UnusableInputError: damaged, values that are fractional, negative or above `HIGHEST_VALUE`, or channels that are
            no label map.
    """
    path = Path(path)
    image = read_image(path)
    values = image.as_tensor()
    _require_numbers(values, path)
    segments, overlap = _segments(path), 0
    if segments:
        mask, overlap = _from_segments(values, segments, path)
    elif values.shape[0] == 1:
        mask = values.to(torch.int32)
    elif _is_picture(path):
        mask = _from_colours(values, path)
    else:
        mask, overlap = _from_channels(values, channels, path)
    if _is_picture(path) and set(torch.unique(mask).tolist()) <= {0, 255}:
        mask = (mask > 0).to(torch.int32)  # the usual way to save a binary mask as a picture
    remarks = (f"{overlap} voxels belong to several segments; each keeps the last one",) if overlap else ()
    names = {number: segment.name for number, segment in enumerate(segments, start=1)}
    return LabelMap(MetaTensor(mask, affine=image.affine), names, remarks)


def image_grid(path: Path) -> MetaTensor:
    """The grid of an image without its voxels, where the format allows that.

    Returns:
        (C, *grid) with the image's affine; the voxel values mean nothing and take no memory for NIfTI files.

    Raises:
        UnusableInputError: the file is damaged.
    """
    path = Path(path)
    if (image_suffix(path) or "").lower() not in (".nii", ".nii.gz"):
        return read_image(path)
    try:
        header = nib.load(path)
        shape, affine = header.shape, np.asarray(header.affine, dtype=np.float64)  # type: ignore[attr-defined]
    except Exception as error:  # readers raise whatever they like; read_image says it in one sentence
        read_image(path)
        raise UnusableInputError(f"{path.name} cannot be read: {error}") from error
    check_affine(affine, path.name)
    if len(shape) == 2:
        affine = affine[np.ix_([0, 1, 3], [0, 1, 3])]
    elif len(shape) != 3 or min(shape) == 0:
        return read_image(path)
    return MetaTensor(torch.zeros(1).expand(1, *shape), affine=torch.from_numpy(affine))


def _require_numbers(values: torch.Tensor, path: Path) -> None:
    fractional = values != values.round()
    if fractional.any():
        example = float(values[fractional][0])
        raise UnusableInputError(
            f"label {path.name} holds fractional values such as {example:g}; save a label map with whole numbers, "
            "not a probability map"
        )
    if values.min() < 0:
        raise UnusableInputError(
            f"label {path.name} holds the negative value {float(values.min()):g}; labels start at 0"
        )
    if values.max() > HIGHEST_VALUE:
        raise UnusableInputError(
            f"label {path.name} holds the value {float(values.max()):.10g}, but label values end at {HIGHEST_VALUE}; "
            "save a label map, not an image"
        )


def _segments(path: Path) -> list[Segment]:
    """Segments that the header of a NRRD file names; empty for other files."""
    if path.suffix.lower() != ".nrrd":
        return []
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    meta = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys() if key.startswith("Segment")}
    segments: list[Segment] = []
    while f"Segment{len(segments)}_ID" in meta:
        prefix = f"Segment{len(segments)}_"
        name = meta.get(prefix + "Name") or meta[prefix + "ID"]
        value, layer = meta.get(prefix + "LabelValue", len(segments) + 1), meta.get(prefix + "Layer", 0)
        segments.append(Segment(name.strip(), int(layer), int(value)))
    return segments


def _from_segments(layers: torch.Tensor, segments: list[Segment], path: Path) -> tuple[torch.Tensor, int]:
    """Label map with value k + 1 for segment k, and the number of voxels in several segments."""
    mask = torch.zeros((1, *layers.shape[1:]), dtype=torch.int32)
    overlap = 0
    for number, segment in enumerate(segments, start=1):
        if segment.layer >= layers.shape[0]:
            raise UnusableInputError(
                f"segment {segment.name!r} of {path.name} lies on layer {segment.layer}, but there are only "
                f"{layers.shape[0]}; export the segmentation again"
            )
        inside = layers[segment.layer : segment.layer + 1] == segment.value
        overlap += int((inside & (mask > 0)).sum())
        mask[inside] = number
    covered = torch.stack([layers[s.layer] == s.value for s in segments]).any(dim=0)
    if bool(((layers > 0).any(dim=0) & ~covered).any()):
        raise UnusableInputError(f"{path.name} holds values that none of its {len(segments)} segments names")
    return mask, overlap


def _from_channels(values: torch.Tensor, channels: int, path: Path) -> tuple[torch.Tensor, int]:
    """Label map of one-hot channels, and the number of voxels in several of them."""
    count = values.shape[0]
    if values.max() > 1:
        raise UnusableInputError(
            f"label {path.name} has {count} channels with values up to {float(values.max()):g}; save one label map, "
            "or one channel of 0 and 1 per label"
        )
    total = values.sum(dim=0)
    if bool((total == 1).all()) and count != channels:  # one channel at every voxel: the first is the background
        return values.argmax(dim=0, keepdim=True).to(torch.int32), 0
    mask = torch.zeros((1, *values.shape[1:]), dtype=torch.int32)
    for index in range(count):
        mask[values[index : index + 1] > 0] = index + 1
    return mask, int((total > 1).sum())


def _from_colours(values: torch.Tensor, path: Path) -> torch.Tensor:
    if not bool((values == values[:1]).all()):
        raise UnusableInputError(f"label {path.name} is a colour picture; save one grey channel with label numbers")
    return values[:1].to(torch.int32)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES
