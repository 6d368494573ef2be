"""Overlap of two binary masks: Dice, Jaccard and the difference of their volumes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def overlap_metrics(pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, float]:
    """Overlap of a predicted and a true structure.

    Args:
        pred: (*grid) the predicted structure.
        truth: (*grid) the true structure; it may be empty.

    Returns:
        `dice` = 2 |P and T| / (|P| + |T|), `jaccard` = |P and T| / |P or T|, and
        `volume_difference` = | |P| - |T| | / |T|. Both empty: 1, 1 and 0. Only `truth` empty: 0, 0 and 1, as bad as
        a structure that was missed.
    """
    n_pred, n_truth = int(pred.sum()), int(truth.sum())
    if n_pred + n_truth == 0:
        return {"dice": 1.0, "jaccard": 1.0, "volume_difference": 0.0}
    common = int(np.logical_and(pred, truth).sum())
    return {
        "dice": 2.0 * common / (n_pred + n_truth),
        "jaccard": common / (n_pred + n_truth - common),
        "volume_difference": abs(n_pred - n_truth) / n_truth if n_truth else 1.0,
    }
