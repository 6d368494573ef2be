"""Tables of weak labels as they come from readers: checked whole, before anything of them is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medseg.errors import NotFoundError, UnusableInputError
from medseg.weak import WeakLabels
from medseg.weak_table import TableRow, read_table


def read_weak_table(file: Path, images: Mapping[str, Path]) -> dict[str, TableRow]:
    """Read a table of weak labels; the columns are those of `labels.csv`, see `medseg.weak_table`.

    Args:
        file: CSV; a row names its image by id or file name.
        images: image files by id.

    Returns:
        Rows by image id, those that say something.

    Raises:
        NotFoundError: there is no such file.
        UnusableInputError: names file, line, column and reason of the first bad row; or no row says anything.
    """
    file = Path(file)
    if not file.is_file():
        raise NotFoundError(f"table of weak labels {file} does not exist; give a CSV file")
    rows = {identifier: row for identifier, row in read_table(file, images).items() if row.weak or row.patient}
    if not rows:
        raise UnusableInputError(
            f"{file} says nothing of any image; give columns such as extent_left (per cent) or score_left (0-5)"
        )
    return rows


def merged(before: WeakLabels | None, row: TableRow) -> WeakLabels | None:
    """What was known of an image with a row over it: kinds of labels that the row has replace those from before.

    Source and author are those of the extents, and change with them, both together.
    """
    if row.weak is None:
        return before
    said = {key: value for key, value in row.weak.model_dump().items() if value not in (None, {})}
    said.pop("landmark_unit" if not row.weak.landmarks else "", None)
    old = before.model_dump() if before else {}
    if "extent" in said or "scores" in said:  # one reading of the extents, not a mixture of two
        old = {key: value for key, value in old.items() if key not in ("extent", "scores", "source", "by")}
    elif old.get("source") or old.get("by"):
        said = {key: value for key, value in said.items() if key not in ("source", "by")}
    return WeakLabels.model_validate({**old, **said})
