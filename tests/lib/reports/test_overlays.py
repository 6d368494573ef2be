"""Overlays in 2D and 3D."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.reports.overlays import Overlay, choose_slices, draw_overlay


def volume(low: int, high: int) -> np.ndarray:
    mask = np.zeros((12, 10, 30), np.uint8)
    mask[4:8, 3:7, low:high] = 1
    return mask


def test_slices_lie_inside_the_true_structure():
    overlay = Overlay(np.zeros((12, 10, 30)), volume(10, 20), volume(0, 30))

    assert choose_slices(overlay, 3) == [12, 14, 18]


def test_empty_masks_give_slices_of_the_whole_volume():
    overlay = Overlay(np.zeros((12, 10, 30)), volume(0, 0), volume(0, 0))

    assert choose_slices(overlay, 3) == [5, 14, 24]


def test_volume_has_a_row_per_slice_and_a_column_per_view():
    overlay = Overlay(
        np.random.default_rng(0).random((12, 10, 30)), volume(5, 25), volume(6, 24), np.zeros((12, 10, 30)), (1, 2, 4)
    )

    figure = draw_overlay(overlay, {"box": 1})

    assert len(figure.axes) == 3 * 4
    assert [axes.get_title() for axes in figure.axes[:4]] == ["image", "truth", "prediction", "uncertainty"]
    assert figure.axes[0].get_aspect() == pytest.approx(2.0)
    assert figure.legends[0].get_texts()[0].get_text() == "box"


def test_colour_picture_without_truth_has_two_views():
    overlay = Overlay(np.zeros((12, 10, 3)), None, np.eye(12, 10, dtype=np.uint8), spacing=(1.0, 1.0))

    figure = draw_overlay(overlay, {"line": 1})

    assert [axes.get_title() for axes in figure.axes] == ["image", "prediction"]
    assert figure.axes[0].images[0].get_array().shape == (10, 12, 3)
