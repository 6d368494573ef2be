"""`labels.csv` and `landmarks.csv` of a plain data folder: weak labels, patients and domains, one row per image.

A table is read whole or not at all: the first bad row ends it with a sentence that names file, line, column and reason.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.errors import UnusableInputError
from medseg.weak import WeakLabels, parse_weak

logger = logging.getLogger(__name__)

TABLES = ("labels.csv", "landmarks.csv")
IMAGE_COLUMNS = ("image", "image_id", "filename", "file", "id")
PATIENT_COLUMNS = ("patient", "patient_id", "case")
WAY_OUT = (
    "a table of images has a column image, and angle_NAME (degrees), extent_REGION (per cent), score_REGION (0-5), "
    "x0 and y0 or landmark_NAME_x and landmark_NAME_y (pixels), patient, case or domain; rename the file if it is none"
)

_NUMBERED_FILE = re.compile(r"^(.*?)\d*\.(?:jpe?g|png|bmp|tiff?|dcm|nii|nii\.gz)$", re.IGNORECASE)
"""A file name in the patient's column: the pictures of one series, `anna_1.jpg` and `anna_2.jpg`, are one patient."""

_POINT = re.compile(r"(?P<axis>[xyz])(?P<number>\d+)|landmark_(?P<name>.+)_(?P<named_axis>[xyz])", re.IGNORECASE)
_RANGE = re.compile(r"(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)")


@dataclass
class TableRow:
    """What the tables of a folder say of one image.

    Attributes:
        where: file and line, for errors.
        patient: empty where nothing is said.
        domain: None where nothing is said; nothing is guessed.
        labels: `extent` (per cent), `scores` (0-5), `angles` (deg) and `landmarks` (px) by name, in the order of the
            columns.
        source: where the labels come from, for example "reader"; "table" where nothing is said.
        by: who made them.
    """

    where: str
    patient: str = ""
    domain: str | None = None
    labels: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"extent": {}, "scores": {}, "angles": {}, "landmarks": {}}
    )
    source: str = ""
    by: str = ""

    @property
    def weak(self) -> WeakLabels | None:
        """The row as weak labels, `source` "table"; None for a row without any."""
        if not self.domain and not any(self.labels.values()):
            return None
        about = {"domain": self.domain, "source": self.source or "table", "by": self.by or None}
        return parse_weak({**self.labels, **about}, self.where)


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns that are read.

    Attributes:
        values: column by (kind, name) for `extent`, `scores` and `angles`.
        points: columns of x, y[, z] by landmark name.
    """

    names: list[str]
    image: int
    patient: int | None
    domain: int | None
    source: int | None
    by: int | None
    values: dict[tuple[str, str], int]
    points: dict[str, list[int]]


def read_tables(folder: Path, images: Mapping[str, Path]) -> dict[str, TableRow]:
    """Read the tables of a data folder; the two may speak of the same images, but not of the same label.

    Args:
        folder: holds `labels.csv`, `landmarks.csv`, both or none.
        images: image files of the folder by case id. A row names its image by file name or by id.

    Returns:
        Rows by case id, for the images that a table names.

    Raises:
        UnusableInputError: a table cannot be used, or the two contradict each other.
    """
    rows: dict[str, TableRow] = {}
    for file in (folder / name for name in TABLES):
        for identifier, row in (read_table(file, images) if file.is_file() else {}).items():
            rows[identifier] = _join(rows[identifier], row) if identifier in rows else row
    return rows


def read_table(file: Path, images: Mapping[str, Path]) -> dict[str, TableRow]:
    """Read one table; arguments, result and errors as of `read_tables`."""
    lines = _lines(file)
    if not lines:
        raise UnusableInputError(f"{file} is empty; {WAY_OUT}")
    columns = _columns(f"{file} line {lines[0][0]}", lines[0][1])
    known = {**{name: name for name in images}, **{path.name: name for name, path in images.items()}}
    rows: dict[str, TableRow] = {}
    for line, cells in lines[1:]:
        where = f"{file} line {line}"
        if len(cells) != len(columns.names):
            raise UnusableInputError(f"{where} has {len(cells)} cells, but the header has {len(columns.names)}")
        name, place = cells[columns.image], f"{where}, column {columns.names[columns.image]!r}"
        if name not in known:
            reason = f"there is no image {name!r} among the {len(images)} that are known"
            raise UnusableInputError(f"{place}: {reason}; give a file name or id, or remove the row")
        if other := rows.get(known[name]):
            raise UnusableInputError(f"{place}: image {name!r} already has a row, {other.where}; keep one of them")
        rows[known[name]] = _row(where, cells, columns)
    return rows


def _lines(file: Path) -> list[tuple[int, list[str]]]:
    """Line numbers and stripped cells of the lines that are not blank."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:  # spreadsheets write a byte order mark
            reader = csv.reader(stream, strict=True)
            return [
                (reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))
            ]
    except UnicodeDecodeError as error:
        raise UnusableInputError(f"{file} is no UTF-8 text ({error.reason}); save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise UnusableInputError(f"{file} line {reader.line_num} is no CSV: {error}") from error


def _columns(where: str, names: list[str]) -> _Columns:
    lower = [name.lower() for name in names]
    if twice := [name for index, name in enumerate(lower) if name and name in lower[:index]]:
        raise UnusableInputError(f"{where}: two columns are called {twice[0]!r}; rename one of them")
    image = _first(lower, IMAGE_COLUMNS)
    if image is None:
        comma = "it is separated by ';', save it with commas" if len(names) == 1 and ";" in names[0] else WAY_OUT
        raise UnusableInputError(f"{where}: there is no column 'image' that names the image file or id; {comma}")
    values: dict[tuple[str, str], int] = {}
    axes: dict[str, dict[str, int]] = {}
    unread: list[str] = []
    for index, name in enumerate(names):
        place = f"{where}, column {name!r}"
        if point := _POINT.fullmatch(name):
            found = axes.setdefault(point["number"] or point["name"], {})
            taken = found.setdefault((point["axis"] or point["named_axis"]).lower(), index)
        elif key := _value_key(place, name):
            taken = values.setdefault(key, index)
        else:
            unread.append(name)
            continue
        if taken != index:
            raise UnusableInputError(f"{place} names the same label as {names[taken]!r}; remove one of them")
    points = {name: _point_columns(where, names, found) for name, found in axes.items()}
    patient, domain, source, by = (
        _first(lower, known) for known in (PATIENT_COLUMNS, ("domain",), ("source",), ("by",))
    )
    columns = _Columns(names, image, patient, domain, source, by, values, points)
    if columns.patient is None and columns.domain is None and not values and not points:
        raise UnusableInputError(f"{where}: no column but {names[image]!r} is known; {WAY_OUT}")
    used = {names[index] for index in (image, patient, domain, source, by) if index is not None}
    if others := [name for name in unread if name not in used]:
        logger.info("%s: columns that are not read: %s", where, ", ".join(others))
    return columns


def _first(names: list[str], wanted: tuple[str, ...]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _value_key(where: str, column: str) -> tuple[str, str] | None:
    """Kind and name: `angle_1_deg` is `angle_1`, `extent_left lung` and `score_left lung` the region `left lung`.

    Angles keep the word: the numbers of `angle_1`, `angle_2`, ... say their order, and alone they would name nothing.
    """
    lower = column.lower()
    if lower.startswith("angle") and not lower.endswith("_rad"):
        return "angles", column[: -len("_deg")] if lower.endswith("_deg") else column
    if lower.startswith("extent_") and lower != "extent_":
        return "extent", column[len("extent_") :]
    if lower.startswith("score_") and lower != "score_":
        return "scores", column[len("score_") :]
    if lower.startswith(("angle", "extent", "landmark")):  # a near miss must not be left out in silence
        raise UnusableInputError(f"{where} is not understood; {WAY_OUT}")
    return None


def _point_columns(where: str, names: list[str], found: dict[str, int]) -> list[int]:
    missing = [axis for axis in "xy" if axis not in found]
    if missing:
        column = names[next(iter(found.values()))]
        raise UnusableInputError(f"{where}, column {column!r}: its {missing[0]} column is missing; a point has x and y")
    return [found[axis] for axis in "xyz" if axis in found]


def _row(where: str, cells: list[str], columns: _Columns) -> TableRow:
    about = (columns.patient, columns.domain, columns.source, columns.by)
    patient, domain, source, by = (cells[index] if index is not None else "" for index in about)
    if series := _NUMBERED_FILE.match(patient):
        patient = series[1] or patient
    row = TableRow(where, patient, domain or None, source=source, by=by)
    for (kind, name), index in columns.values.items():
        if cells[index]:
            place = f"{where}, column {columns.names[index]!r}"
            value = _READERS[kind](cells[index], place)
            parse_weak({kind: {name: value}}, place)
            row.labels[kind][name] = value
    for name, indices in columns.points.items():
        empty = [columns.names[index] for index in indices if not cells[index]]
        if empty and len(empty) < len(indices):
            raise UnusableInputError(
                f"{where}, column {empty[0]!r} is empty; fill it, or empty the whole point {name!r}"
            )
        if not empty:
            point = tuple(_number(cells[index], f"{where}, column {columns.names[index]!r}") for index in indices)
            row.labels["landmarks"][name] = point
    return row


def _extent(cell: str, where: str) -> float | tuple[float, float]:
    bounds = _RANGE.fullmatch(cell)
    return (_number(bounds[1], where), _number(bounds[2], where)) if bounds else _number(cell, where)


def _score(cell: str, where: str) -> int:
    value = _number(cell, where)
    if value != int(value):
        raise UnusableInputError(f"{where}: {cell!r} is no score; give a whole number in 0..5")
    return int(value)


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in cell:  # Python reads 1_000 as a number, spreadsheets do not
        raise UnusableInputError(f"{where}: {cell!r} is no number; write it as 12.5, and leave empty what is not known")
    return value


_READERS: Mapping[str, Callable[[str, str], Any]] = {"extent": _extent, "scores": _score, "angles": _number}


def _join(one: TableRow, two: TableRow) -> TableRow:
    """What two tables say of one image."""
    for what, a, b in (("patient", one.patient, two.patient), ("domain", one.domain, two.domain)):
        if a and b and a != b:
            raise UnusableInputError(f"{two.where}: {what} is {b!r}, but {a!r} in {one.where}; make them equal")
    for kind, names in one.labels.items():
        if both := [name for name in two.labels[kind] if name in names]:
            raise UnusableInputError(f"{two.where}: {kind} {both[0]!r} is in {one.where} as well; keep one of them")
    labels = {kind: {**one.labels[kind], **two.labels[kind]} for kind in one.labels}
    source, by = one.source or two.source, one.by or two.by
    return TableRow(one.where, one.patient or two.patient, one.domain or two.domain, labels, source, by)
