from __future__ import annotations

import numpy as np
from matplotlib.colors import to_hex

from medseg.simulation.figures import GREY, learning_figure, staircase, strategy_colours


def make_curve(strategy: str, seed: int = 0) -> dict:
    rounds = [
        {"round": 0, "labels": 4, "test": {"quality": 0.5}, "published": True},
        {"round": 1, "labels": 6, "test": {"quality": 0.5}, "published": False},
        {"round": 2, "labels": 8, "test": {"quality": 0.7}, "published": True},
    ]
    validation = [(0.4, 0.4), (0.4, 0.3), (0.6, 0.6)]
    for entry, (champion, candidate) in zip(rounds, validation, strict=True):
        entry["validation"] = {"champion": champion, "candidate": candidate}
    return {"strategy": strategy, "seed": seed, "rounds": rounds}


def test_random_is_grey_and_the_others_are_not() -> None:
    colours = strategy_colours([make_curve("caml"), make_curve("random"), make_curve("first")])

    assert colours["random"] == GREY
    assert len(set(colours.values())) == 3


def test_learning_curve_passes_through_the_test_quality() -> None:
    (axes,) = learning_figure([make_curve("random")], "dice").axes

    line = axes.lines[0]
    assert np.array_equal(line.get_xdata(), [4, 6, 8])
    assert np.array_equal(line.get_ydata(), [0.5, 0.5, 0.7])
    assert to_hex(line.get_color()) == GREY


def test_staircase_shows_the_champion_as_steps_and_rejected_candidates_hollow() -> None:
    (axes,) = staircase([make_curve("caml")], "dice").axes

    assert list(axes.lines[0].get_ydata()) == [0.4, 0.4, 0.6, 0.6]
    published, rejected = axes.collections
    assert [tuple(point) for point in published.get_offsets()] == [(0, 0.4), (2, 0.6)]
    assert [tuple(point) for point in rejected.get_offsets()] == [(1, 0.3)]
    assert len(rejected.get_facecolors()) == 0
