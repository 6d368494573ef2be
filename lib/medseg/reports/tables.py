"""Tables of a report: plain cells, formatted once, with the best value of a column in bold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table as it is shown.

    Attributes:
        header: column titles.
        rows: cells as text, each row as long as the header.
        bold: (row, column) of the cells that stand out.
        caption: one sentence under the table.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()
    caption: str = ""


def make_table(
    header: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    best: Mapping[str, bool] | None = None,
    caption: str = "",
) -> Table:
    """Format cells and find the best value of some columns.

    Args:
        header: column titles.
        rows: cells; a missing value is None.
        best: column title -> whether higher is better.
        caption: one sentence under the table.

    Raises:
        ValueError: a row is not as long as the header.
    """
    cells = [list(row) for row in rows]
    for row in cells:
        if len(row) != len(header):
            raise ValueError(f"a table row has {len(row)} cells, the header has {len(header)}: {row}")
    bold: set[tuple[int, int]] = set()
    for title, higher in (best or {}).items():
        bold |= _best_cells(cells, list(header).index(title), higher)
    shown = tuple(tuple(format_cell(cell) for cell in row) for row in cells)
    return Table(tuple(header), shown, frozenset(bold), caption)


def metrics_table(
    cases: Mapping[str, Mapping[str, float]], metrics: Sequence[str] | None = None, caption: str = ""
) -> Table:
    """One row per case, one column per metric; a metric that a case lacks is shown as a dash."""
    keys = list(metrics or dict.fromkeys(key for values in cases.values() for key in values))
    rows = [[case, *(values.get(key) for key in keys)] for case, values in cases.items()]
    return make_table(["case", *keys], rows, caption=caption)


def format_cell(value: Cell) -> str:
    """Numbers with about four digits that matter; a dash for what is missing."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, str | int):
        return str(value)
    magnitude = abs(value)
    if magnitude >= 1000:
        return f"{value:,.0f}"
    if magnitude >= 100:
        return f"{value:.1f}"
    if magnitude >= 10:
        return f"{value:.2f}"
    return f"{value:.4f}" if magnitude < 1 else f"{value:.3f}"


def _best_cells(cells: list[list[Cell]], column: int, higher: bool) -> set[tuple[int, int]]:
    numbers = {i: float(row[column]) for i, row in enumerate(cells) if isinstance(row[column], int | float)}  # type: ignore[arg-type]
    if len(numbers) < 2:
        return set()
    top = max(numbers.values()) if higher else min(numbers.values())
    return {(i, column) for i, value in numbers.items() if value == top}
