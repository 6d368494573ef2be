"""Curves: mean and band over seeds, one plot per term."""

from __future__ import annotations

import warnings

import pytest

from medseg.reports.curves import band, learning_curves, scaling_curves, training_curves


def test_band_counts_at_each_place_the_runs_that_reached_it():
    places, mean, low, high = band([[(4, 0.5), (6, 0.7)], [(4, 0.7)]])

    assert places == [4.0, 6.0]
    assert mean == pytest.approx([0.6, 0.7])
    assert (low, high) == ([0.5, 0.7], [0.7, 0.7])


def test_learning_curves_draw_the_mean_of_each_group():
    figure = learning_curves({"random": [[(4, 0.5), (6, 0.6)], [(4, 0.7), (6, 0.8)]]}, "labels", "Dice")

    [axes] = figure.axes
    assert axes.lines[0].get_ydata() == pytest.approx([0.6, 0.7])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("labels", "Dice")


def test_training_curves_have_one_plot_per_term():
    runs = {"a": {"loss": [(0, 1.0), (1, 0.5)]}, "b": {"loss": [(0, 2.0)], "occ": [(0, 0.1)]}}

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib says of an unclear style what it makes of it
        figure = training_curves(runs)

    assert [axes.get_title() for axes in figure.axes] == ["loss", "occ"]
    assert [(line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines] == [("", "-"), ("o", "-")]


def test_training_curves_of_nothing_are_an_empty_plot():
    assert len(training_curves({}).axes) == 1


def test_costs_over_sizes_are_lines_on_logarithmic_axes():
    figure = scaling_curves(
        {"seconds": {"a": [(16, 0.1), (32, 0.8)], "b": [(16, 2.0)]}, "memory": {"a": [(16, 1)]}}, "n"
    )

    seconds, memory = figure.axes
    assert (seconds.get_title(), memory.get_title()) == ("seconds", "memory")
    assert (seconds.get_xscale(), seconds.get_yscale()) == ("log", "log")
    assert seconds.lines[0].get_ydata() == pytest.approx([0.1, 0.8])
    assert [tick.get_text() for tick in seconds.get_xticklabels()] == ["16", "32"]
