"""What a label is called in DICOM: its SNOMED CT code and its colour, from a table that a file may extend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydicom.dataset import Dataset

from medseg.errors import NotFoundError, UnusableInputError
from medseg.reports.style import colour

SCHEME = "SCT"
STRUCTURE = ("123037004", SCHEME, "Anatomical Structure")
ABNORMAL = ("49755003", SCHEME, "Morphologically Abnormal Structure")
TISSUE = ("85756007", SCHEME, "Tissue")  # what is said of a label whose name is in no table

KNOWN: dict[str, tuple[str, str]] = {
    "brain": ("12738006", "Brain"),
    "femur": ("71341001", "Femur"),
    "heart": ("80891009", "Heart"),
    "kidney": ("64033007", "Kidney"),
    "left kidney": ("18639004", "Left kidney"),
    "right kidney": ("9846003", "Right kidney"),
    "left atrium": ("82471001", "Left atrium"),
    "left ventricle": ("87878005", "Left ventricle"),
    "right ventricle": ("53085002", "Right ventricle"),
    "myocardium": ("74281007", "Myocardium"),
    "liver": ("10200004", "Liver"),
    "lung": ("39607008", "Lung"),
    "left lung": ("44029006", "Left lung"),
    "right lung": ("3341006", "Right lung"),
    "pancreas": ("15776009", "Pancreas"),
    "patella": ("64234005", "Patella"),
    "prostate": ("41216001", "Prostate"),
    "spleen": ("78961009", "Spleen"),
    "tibia": ("12611008", "Tibia"),
    "vertebra": ("51282000", "Vertebra"),
}
"""SNOMED CT, anatomical structures (DICOM PS3.16, context groups 7140 and 7166)."""


class _Entry(BaseModel):
    """One label of a `label_codes` file."""

    model_config = ConfigDict(extra="forbid")

    code: str
    meaning: str = Field(max_length=64)  # LO
    scheme: str = SCHEME
    category: tuple[str, str, str] | None = None
    color: tuple[int, int, int] | None = None

    @field_validator("color")
    @classmethod
    def _byte(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if value and not all(0 <= part <= 255 for part in value):
            raise ValueError("give three numbers in 0..255")
        return value


@dataclass(frozen=True)
class LabelStyle:
    """How one label appears in a DICOM SEG.

    Attributes:
        category: (code, scheme, meaning) of what kind of thing it is.
        type: (code, scheme, meaning) of the thing.
        color: sRGB, 0..255.
    """

    category: tuple[str, str, str]
    type: tuple[str, str, str]
    color: tuple[int, int, int]


class LabelCodes:
    """Styles of labels by name; case, underscores and hyphens do not matter.

    Args:
        file: JSON `{name: {"code", "meaning", "scheme"?, "category"?: [code, scheme, meaning], "color"?: [r, g, b]}}`;
            its entries go before the built-in table.

    Raises:
        NotFoundError: no such file.
        UnusableInputError: the file has another form; names the entry.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._stated = {_key(name): entry for name, entry in _read(file).items()} if file else {}

    def style(self, name: str, index: int) -> LabelStyle:
        """The style of a label; `index` chooses a colour where none is stated."""
        stated = self._stated.get(_key(name))
        if stated is not None:
            kind = (stated.code, stated.scheme, stated.meaning)
            return LabelStyle(stated.category or STRUCTURE, kind, stated.color or default_color(index))
        code = KNOWN.get(_key(name))
        kind = (code[0], SCHEME, code[1]) if code else TISSUE
        return LabelStyle(STRUCTURE, kind, default_color(index))


def default_color(index: int) -> tuple[int, int, int]:
    """The colour that reports give to label `index`, from 1."""
    text = colour(index - 1).removeprefix("#")
    red, green, blue = (int(text[place : place + 2], 16) for place in (0, 2, 4))
    return red, green, blue


def coded(code: tuple[str, str, str]) -> Dataset:
    """A coded entry: value, scheme, meaning."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item


def dicom_lab(color: tuple[int, int, int]) -> list[int]:
    """sRGB as DICOM's 16-bit CIELab (PS3.3 C.10.7.1.1), white point D65 as viewers turn it back."""
    rgb = np.array(color, dtype=np.float64) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = matrix @ linear / np.array([0.950456, 1.0, 1.088754])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lightness, a, b = 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])
    scaled = [lightness * 65535 / 100, (a + 128) * 65535 / 255, (b + 128) * 65535 / 255]
    return [int(np.clip(np.rint(value), 0, 65535)) for value in scaled]


def _key(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _read(file: Path) -> dict[str, _Entry]:
    try:
        values: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"label_codes file {file} does not exist") from error
    except ValueError as error:
        raise UnusableInputError(f"label_codes file {file} is not JSON: {error}") from error
    if not isinstance(values, Mapping):
        raise UnusableInputError(f'label_codes file {file} must hold {{"liver": {{"code": ..., "meaning": ...}}, ...}}')
    entries = {}
    for name, value in values.items():
        try:
            entries[str(name)] = _Entry.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "entry"
            raise UnusableInputError(f"label_codes file {file}, label {name!r}, {where}: {first['msg']}") from error
    return entries
