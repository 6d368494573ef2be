"""The summary of one arm."""

from __future__ import annotations

from medseg.benchmark.summary import summarise_arm


def test_what_an_arm_chose_is_kept_by_seed():
    def result(labelled):
        kept = {"iterations": 2, "seconds": 1.0, "peak_memory_mb": 1.0, "missed": 0, "skipped": [], "mean": None}
        return {**kept, "cases": {"x": {"dice": 0.5}}, "labelled": labelled, "extra": {"note": labelled}}

    chosen = summarise_arm({0: [(None, result(["a"]))], 1: [(None, result(["b"]))]}, "dice", "random_1")
    given = summarise_arm({0: [(None, result(None))]}, "dice", "full")

    assert chosen["labelled_by_seed"] == {"0": [["a"]], "1": [["b"]]}
    assert chosen["extra_by_seed"] == {"0": {"note": ["a"]}, "1": {"note": ["b"]}}
    assert given["labelled_by_seed"] == {}
