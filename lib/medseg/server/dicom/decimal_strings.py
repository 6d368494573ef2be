"""Numbers as DICOM's decimal strings."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 16  # characters, DICOM PS3.5 6.2, DS


def decimals(values: Iterable[float]) -> list[str]:
    """Each number as precise as 16 characters allow."""
    return [_decimal(float(value) + 0.0) for value in values]


def _decimal(value: float) -> str:
    return next(text for digits in range(15, 0, -1) if len(text := f"{value:.{digits}g}") <= LONGEST)
