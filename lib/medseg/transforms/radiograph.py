"""What the header of a DICOM file says of a radiograph: whether it is one, and how large its pixels are."""

from __future__ import annotations

from collections.abc import Sequence

PROJECTIONS = ("CR", "DX", "RG")
"""Modalities whose images are pictures, even where the device wrote an orientation."""


def is_picture(modality: str, orientation: object) -> bool:
    """Whether a single plane is a picture and no slice of a volume: a radiograph, or one without a place in space."""
    return modality.strip().upper() in PROJECTIONS or not orientation


def pixel_size(
    pixel: Sequence[float] | None, imager: Sequence[float] | None, aspect: Sequence[float] | None
) -> tuple[float, float]:
    """Size of a pixel along x and y; in mm, but for an aspect ratio, and for (1, 1) where nothing is told.

    Args:
        pixel: PixelSpacing (between rows, between columns), which may be corrected for magnification.
        imager: ImagerPixelSpacing, at the detector.
        aspect: PixelAspectRatio (vertical, horizontal).
    """
    for values in (pixel, imager):
        if values and len(values) == 2 and min(values) > 0:
            return float(values[1]), float(values[0])
    if aspect and len(aspect) == 2 and min(aspect) > 0:
        return 1.0, float(aspect[0]) / float(aspect[1])
    return 1.0, 1.0
