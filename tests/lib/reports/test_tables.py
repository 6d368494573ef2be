"""Cells, best values and metric tables."""

from __future__ import annotations

import pytest

from medseg.reports.tables import format_cell, make_table, metrics_table


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.89618, "0.8962"), (8.7612, "8.761"), (12.345, "12.35"), (123.45, "123.5"), (54321.0, "54,321"), (3, "3")],
)
def test_numbers_keep_the_digits_that_matter(value, shown):
    assert format_cell(value) == shown


def test_lowest_value_is_best_where_lower_is_better_and_missing_ones_do_not_count():
    table = make_table(["arm", "hd95"], [["a", 3.0], ["b", 2.0], ["c", None]], best={"hd95": False})

    assert table.bold == {(1, 1)}
    assert table.rows[2] == ("c", "\N{EN DASH}")


def test_single_row_has_no_best():
    assert make_table(["arm", "dice"], [["a", 0.5]], best={"dice": True}).bold == frozenset()


def test_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="1 cells, the header has 2"):
        make_table(["arm", "dice"], [["a"]])


def test_metrics_table_has_a_dash_for_what_a_case_lacks():
    table = metrics_table({"x": {"dice": 0.5}, "y": {"dice": 0.25, "asd_mm": 2.0}})

    assert table.header == ("case", "dice", "asd_mm")
    assert table.rows == (("x", "0.5000", "\N{EN DASH}"), ("y", "0.2500", "2.000"))
