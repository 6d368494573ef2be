"""What arms tell beside their value."""

from __future__ import annotations

from medseg.benchmark.costs import costs_by_size, extra_blocks
from medseg.reports.page import Fold, Plot

ARMS = {
    "windowed": {
        "extra": {"seconds_16": 0.1, "seconds_80": 9.0, "memory_mb_16": 2.0, "memory_mb_80": 250.0, "cores": 2}
    },
    "pairwise": {"extra": {"seconds_16": 0.5, "memory_mb_16": 67.0, "note": "all pairs"}},
}


def test_sizes_are_found_in_the_names():
    assert costs_by_size(ARMS) == {
        "seconds": {"windowed": {16: 0.1, 80: 9.0}, "pairwise": {16: 0.5}},
        "memory_mb": {"windowed": {16: 2.0, 80: 250.0}, "pairwise": {16: 67.0}},
    }
    assert costs_by_size({"a": {"extra": {"top_5": 0.5}}}) == {}  # one size is no curve


def test_costs_are_a_table_and_a_plot_and_the_rest_is_folded():
    table, plot, fold = extra_blocks(ARMS)

    assert table.header == ("arm", "size", "seconds", "memory_mb")
    assert [row[:2] for row in table.rows] == [("windowed", "16"), ("windowed", "80"), ("pairwise", "16")]
    assert isinstance(plot, Plot)
    assert isinstance(fold, Fold)
    assert fold.content.rows == (("cores", "2", "\N{EN DASH}"), ("note", "\N{EN DASH}", "all pairs"))
    assert extra_blocks({"full": {"extra": {}}}) == []
