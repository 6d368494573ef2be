"""Dice, Jaccard and volume difference against hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.metrics.overlap import overlap_metrics


@pytest.mark.parametrize(
    ("pred", "truth", "dice", "jaccard", "volume"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 1.0, 1.0, 0.0),
        ([1, 1, 1, 0], [0, 1, 1, 1], 4 / 6, 2 / 4, 0.0),
        ([1, 0, 0, 0], [1, 1, 1, 1], 2 / 5, 1 / 4, 3 / 4),
        ([1, 1, 1, 1], [1, 0, 0, 0], 2 / 5, 1 / 4, 3.0),
        ([0, 0, 0, 0], [1, 1, 0, 0], 0.0, 0.0, 1.0),
        ([1, 0, 0, 0], [0, 0, 0, 0], 0.0, 0.0, 1.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0, 1.0, 0.0),
    ],
)
def test_overlap_has_the_hand_computed_value(pred, truth, dice, jaccard, volume):
    found = overlap_metrics(np.array(pred, bool), np.array(truth, bool))

    assert found == {
        "dice": pytest.approx(dice),
        "jaccard": pytest.approx(jaccard),
        "volume_difference": pytest.approx(volume),
    }
