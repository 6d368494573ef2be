"""The metrics of one case over all its labels, and the mean over cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UnusableInputError
from medseg.metrics.overlap import overlap_metrics
from medseg.metrics.surface import average_surface_distance, hd95, surface_distances, worst_distance

LOWER_IS_BETTER = (
    *("hd95", "asd", "volume_difference", "missed", "extent_error", "false_positive", "entropy", "radial_error"),
    *("smape", "mae", "cmae", "manhattan", "euclidean", "chebyshev", "count_failure", "refused"),
)
"""Prefixes of the metrics of which a smaller value is the better one."""

NO_BETTER_SIDE = ("found_", "true_")
"""Prefixes of values that stand beside the metrics and are none."""


def segmentation_metrics(
    pred: NDArray[Any], truth: NDArray[Any], labels: Mapping[str, int], spacing: Sequence[float] | None
) -> dict[str, float]:
    """Metrics of one predicted mask against the truth.

    Args:
        pred: (*grid) integer mask, 2D or 3D.
        truth: (*grid) integer mask.
        labels: label name -> index. Values that no label names count as background.
        spacing: mm per voxel along each axis; entries beyond the axes of the masks are ignored. None: the size of a
            pixel is unknown, as in pictures.

    Returns:
        `dice`, `jaccard`, `hd95_mm`, `hd95_voxel`, `asd_mm`, `asd_voxel`, `volume_difference` (relative, absolute
        value), each the mean over the labels, and `missed`, the number of structures of the truth of which nothing was
        predicted. Without a spacing, `hd95_px` and `asd_px` stand for the four distances. With more than one label each
        also stands as `<metric>_<label>`. A structure that was missed, or predicted where there is none, has Dice 0 and
        the image's diagonal as distance. A label that is absent from both is left out; all labels absent: Dice 1,
        distances 0.

    Raises:
        UnusableInputError: the masks' shapes differ, or the spacing has too few entries.
    """
    _check(pred, truth, spacing)
    ones = (1.0,) * pred.ndim
    units = {"px": ones} if spacing is None else {"mm": tuple(map(float, spacing))[: pred.ndim], "voxel": ones}
    per_label: dict[str, dict[str, float]] = {}
    for name, index in labels.items():
        structure = _one_label(pred == index, truth == index, units)
        if structure is not None:
            per_label[name] = structure
    if not per_label:
        nothing = {"dice": 1.0, "jaccard": 1.0, "volume_difference": 0.0}
        return {**nothing, **_named(dict.fromkeys(units, (0.0, 0.0))), "missed": 0.0}
    keys = [key for key in next(iter(per_label.values())) if key != "missed"]
    means = {key: float(np.mean([metrics[key] for metrics in per_label.values()])) for key in keys}
    means["missed"] = float(sum(metrics["missed"] for metrics in per_label.values()))
    if len(labels) > 1:
        means.update({f"{key}_{name}": metrics[key] for name, metrics in per_label.items() for key in keys})
    return means


def mean_table(cases: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the cases that have it.

    A metric of one label is absent from a case in which that label occurs neither in the truth nor in the prediction.
    """
    keys = dict.fromkeys(key for metrics in cases.values() for key in metrics)
    return {key: float(np.mean([metrics[key] for metrics in cases.values() if key in metrics])) for key in keys}


def higher_is_better(metric: str) -> bool | None:
    """Whether a larger value of one of the metrics above is the better one; None for a value without a better side."""
    return None if metric.startswith(NO_BETTER_SIDE) else not metric.startswith(LOWER_IS_BETTER)


def _check(pred: NDArray[Any], truth: NDArray[Any], spacing: Sequence[float] | None) -> None:
    if pred.shape != truth.shape:
        raise UnusableInputError(
            f"the predicted mask has shape {pred.shape} and the true mask {truth.shape}; resample one onto the other"
        )
    if spacing is not None and len(spacing) < pred.ndim:
        raise UnusableInputError(f"spacing {tuple(spacing)} has fewer entries than the mask's {pred.ndim} axes")


def _one_label(
    pred: NDArray[np.bool_], truth: NDArray[np.bool_], units: Mapping[str, tuple[float, ...]]
) -> dict[str, float] | None:
    """Metrics of one structure; None where it is absent from both masks. `units`: name -> its length of a voxel."""
    has_pred, has_truth = bool(pred.any()), bool(truth.any())
    if not has_pred and not has_truth:
        return None
    missed = {"missed": float(has_truth and not has_pred)}
    if has_pred and has_truth:
        box = _bounding_box(pred | truth)
        distances = _distances(pred[box], truth[box], units)
    else:
        worst = {unit: worst_distance(pred.shape, spacing) for unit, spacing in units.items()}
        distances = {unit: (length, length) for unit, length in worst.items()}
    return {**overlap_metrics(pred, truth), **_named(distances), **missed}


def _distances(
    pred: NDArray[np.bool_], truth: NDArray[np.bool_], units: Mapping[str, tuple[float, ...]]
) -> dict[str, tuple[float, float]]:
    """HD95 and average surface distance in each unit."""
    voxels = surface_distances(pred, truth, (1.0,) * pred.ndim)
    found = {}
    for unit, spacing in units.items():
        if len(set(spacing)) == 1:  # isotropic: the nearest voxel is the same one
            pair = (voxels[0] * spacing[0], voxels[1] * spacing[0])
        else:
            pair = surface_distances(pred, truth, spacing)
        found[unit] = hd95(*pair), average_surface_distance(*pair)
    return found


def _named(distances: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    named = {f"hd95_{unit}": pair[0] for unit, pair in distances.items()}
    return {**named, **{f"asd_{unit}": pair[1] for unit, pair in distances.items()}}


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around a mask that is not empty."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)
