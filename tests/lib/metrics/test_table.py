"""The table of one case: labels, missed and invented structures, and means over cases."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from medseg.errors import UnusableInputError
from medseg.metrics.table import higher_is_better, mean_table, segmentation_metrics

LABELS = {"left": 1, "right": 2}


def two_boxes() -> np.ndarray:
    mask = np.zeros((10, 10, 6), np.uint8)
    mask[1:4, 1:4, 1:4] = 1
    mask[6:9, 6:9, 2:5] = 2
    return mask


def test_perfect_mask_has_the_best_value_everywhere():
    metrics = segmentation_metrics(two_boxes(), two_boxes(), LABELS, (1.0, 1.0, 3.0))

    assert metrics["dice"] == metrics["jaccard"] == metrics["dice_left"] == metrics["dice_right"] == 1.0
    worst = ("hd95_mm", "hd95_voxel", "asd_mm", "asd_voxel", "volume_difference", "missed", "hd95_mm_left")
    assert all(metrics[key] == 0.0 for key in worst)


def test_shifted_box_has_the_hand_computed_metrics_in_mm_and_voxels():
    truth = two_boxes() == 1
    pred = np.roll(truth, 1, axis=2)  # 27 voxels each, 18 in common

    metrics = segmentation_metrics(pred.astype(int), truth.astype(int), {"box": 1}, (1.0, 1.0, 3.0))

    assert metrics["dice"] == pytest.approx(18 / 27)
    assert metrics["jaccard"] == pytest.approx(18 / 36)
    assert metrics["volume_difference"] == 0.0
    assert metrics["hd95_voxel"] == pytest.approx(1.0)
    assert 1.0 < metrics["hd95_mm"] <= 3.0
    assert not any(key.endswith("_box") for key in metrics)


def test_missed_structure_scores_zero_and_the_diagonal():
    pred = np.where(two_boxes() == 1, 1, 0)

    metrics = segmentation_metrics(pred, two_boxes(), LABELS, (1.0, 1.0, 2.0))

    assert metrics["missed"] == 1.0
    assert metrics["dice_right"] == 0.0
    assert metrics["dice"] == pytest.approx(0.5)
    assert metrics["hd95_mm_right"] == pytest.approx(math.sqrt(100 + 100 + 144))
    assert metrics["asd_voxel"] == pytest.approx(math.sqrt(100 + 100 + 36) / 2)


def test_invented_structure_scores_zero_but_is_not_missed():
    truth = np.where(two_boxes() == 1, 1, 0)

    metrics = segmentation_metrics(two_boxes(), truth, LABELS, (1.0, 1.0, 1.0))

    assert metrics["missed"] == 0.0
    assert metrics["dice_right"] == 0.0
    assert metrics["hd95_voxel_right"] == pytest.approx(math.sqrt(100 + 100 + 36))


def test_label_absent_from_both_is_left_out():
    only_left = np.where(two_boxes() == 1, 1, 0)

    metrics = segmentation_metrics(only_left, only_left, LABELS, (1.0, 1.0, 1.0))

    assert metrics["dice"] == 1.0
    assert "dice_right" not in metrics


def test_nothing_there_and_nothing_found_is_right():
    empty = np.zeros((5, 5), int)

    metrics = segmentation_metrics(empty, empty, LABELS, (1.0, 1.0))

    assert (metrics["dice"], metrics["hd95_mm"], metrics["missed"]) == (1.0, 0.0, 0.0)


def test_no_value_is_ever_nan():
    masks = [np.zeros((6, 6), int), np.eye(6, dtype=int), 2 * np.eye(6, dtype=int)]

    values = [v for a in masks for b in masks for v in segmentation_metrics(a, b, LABELS, (1.0, 2.0)).values()]

    assert np.isfinite(values).all()


def test_spacing_of_a_volume_serves_a_2d_mask():
    mask = np.eye(6, dtype=int)

    assert segmentation_metrics(mask, mask, {"line": 1}, (1.0, 1.0, 1.0))["dice"] == 1.0


def test_different_shapes_are_refused_with_both():
    with pytest.raises(UnusableInputError, match=r"\(4, 4\).*\(5, 5\)"):
        segmentation_metrics(np.zeros((4, 4), int), np.zeros((5, 5), int), LABELS, (1.0, 1.0))


def test_full_size_volume_takes_less_than_two_seconds():
    axes = np.ogrid[:150, :150, :90]
    truth, pred = (
        sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < 35**2 for centre in ((75, 75, 45), (79, 75, 45))
    )

    start = time.perf_counter()
    metrics = segmentation_metrics(np.asarray(pred), np.asarray(truth), {"atrium": 1}, (0.6, 0.6, 1.2))

    assert time.perf_counter() - start < 2
    assert 0.9 < metrics["dice"] < 0.95


def test_mean_skips_cases_without_the_metric():
    mean = mean_table({"a": {"dice": 0.5, "dice_right": 0.5}, "b": {"dice": 1.0}})

    assert mean == {"dice": 0.75, "dice_right": 0.5}


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        *[(name, True) for name in ("dice", "jaccard_left", "vertebra_dice")],
        *[
            (name, False)
            for name in ("hd95_mm", "smape", "smape_geometry", "mae_1", "cmae", "count_failure", "refused")
        ],
        *[(name, None) for name in ("found_max", "true_third")],
    ],
)
def test_direction_of_metrics(metric, higher):
    assert higher_is_better(metric) is higher


def test_pictures_have_pixels_and_no_mm() -> None:
    truth = np.zeros((12, 12), np.uint8)
    truth[2:6, 2:6] = 1
    pred = np.roll(truth, 2, axis=0)

    metrics = segmentation_metrics(pred, truth, {"organ": 1}, None)
    volume = segmentation_metrics(pred, truth, {"organ": 1}, (0.5, 0.5))

    assert set(metrics) == {"dice", "jaccard", "volume_difference", "missed", "hd95_px", "asd_px"}
    assert (metrics["hd95_px"], metrics["asd_px"]) == (volume["hd95_voxel"], volume["asd_voxel"])
    assert volume["hd95_mm"] == volume["hd95_voxel"] / 2 == 1.0
    assert segmentation_metrics(truth * 0, truth, {"organ": 1}, None)["hd95_px"] == pytest.approx(math.hypot(12, 12))
    assert not higher_is_better("hd95_px")
