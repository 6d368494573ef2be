"""Errors of one prediction: of its angles, of its mask, and of its vertebrae."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cc3d
import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.cases import Case
from medseg.methods.base import Prediction
from medseg.methods.seg4reg.geometry import measure_mask
from medseg.methods.seg4reg.report import ORDER, read_path
from medseg.methods.seg4reg.targets import VERTEBRA, Truth, draw_spine, read_truth
from medseg.metrics.overlap import overlap_metrics
from medseg.metrics.smape import angle_errors, smape
from medseg.transforms.grid import spacing_of
from medseg.transforms.io import read_image

if TYPE_CHECKING:
    from medseg.methods.seg4reg.method import Seg4Reg

PATHS = ("image", "mask", "geometry")


def judge(method: Seg4Reg, prediction: Prediction, case: Case, truth: MetaTensor | None) -> dict[str, float]:
    """Metrics of one case.

    A picture whose angles the method withholds is judged with the mean of the training cases, as the constant
    predictor, and counted as `missed`. Stored angles are the truth even where their corners had to be put right.

    Returns:
        `smape` and the other `angle_errors`; `found_max`, `true_max`, ... (deg); `smape_<path>` of every path that
        answers; `refused` (1 where geometry does not believe its count); where a mask or corners are known `dice`,
        `jaccard`, `vertebra_dice` (mean over true vertebrae, 0 for one that is missing), `count_failure` (1 where their
        number is wrong); `missed`.
    """
    image = read_image(case.image)
    known = read_truth(case, image)
    drawn = true_mask(known, image, truth)
    angles = _true_angles(method, known, truth, drawn)
    metrics: dict[str, float] = {}
    if not np.isnan(angles).all():
        found = read_path(prediction.measurements, "")
        metrics["missed"] = float(found is None)
        mean = method.network.mean_angles.double().cpu().numpy()
        said = mean if found is None else found
        metrics |= angle_errors(said, angles)
        for name, value, true in zip(ORDER, said, angles, strict=True):
            if not np.isnan(true):
                metrics |= {f"found_{name}": float(value), f"true_{name}": float(true)}
        for path in PATHS:
            of_path = read_path(prediction.measurements, path)
            if of_path is not None:
                metrics[f"smape_{path}"] = smape(of_path, angles)
    if prediction.mask is not None:
        mask = prediction.mask.as_tensor()[0].cpu().numpy() > 0
        count = prediction.measurements["vertebrae"].value
        metrics["refused"] = float(not method.limits.lowest <= count <= method.limits.highest)
        if drawn is not None:
            metrics |= mask_metrics(mask, drawn)
    return metrics


def mask_metrics(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, float]:
    """`dice`, `jaccard`, `vertebra_dice` and `count_failure` of a mask (x, y) against the true one."""
    overlap = overlap_metrics(mask, truth) if mask.any() or truth.any() else {"dice": 1.0, "jaccard": 1.0}
    true_parts, true_count = _components(truth)
    parts, count = _components(mask)
    scores = []
    for index in range(1, true_count + 1):
        inside = true_parts == index
        met = np.bincount(parts[inside], minlength=count + 1)
        best = int(met[1:].argmax()) + 1 if count and met[1:].any() else 0
        scores.append(2 * met[best] / (inside.sum() + (parts == best).sum()) if best else 0.0)
    mean = float(np.mean(scores)) if scores else overlap["dice"]
    return {
        "dice": overlap["dice"],
        "jaccard": overlap["jaccard"],
        "vertebra_dice": mean,
        "count_failure": float(measure_mask(mask, (1.0, 1.0)).count != true_count),
    }


def _true_angles(
    method: Seg4Reg, known: Truth, truth: MetaTensor | None, drawn: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    """Stored angles, else those of a true mask with a believable number of vertebrae."""
    if not np.isnan(known.angles).all() or truth is None or drawn is None:
        return known.angles
    spacing = spacing_of(truth)
    found = measure_mask(drawn, (spacing[0], spacing[1]), method.limits)
    return np.array(found.cobb.angles) if found.trusted and found.cobb is not None else known.angles


def true_mask(known: Truth, image: MetaTensor, truth: MetaTensor | None) -> NDArray[np.bool_] | None:
    """A drawn mask (x, y), else one drawn from the corners; None where neither is known."""
    if truth is not None:
        given: NDArray[Any] = truth.as_tensor()[0].numpy() > 0
        return given
    if known.corners is None:
        return None
    return draw_spine(known.corners, (image.shape[1], image.shape[2])) == VERTEBRA


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[Any], int]:
    labels, count = cc3d.connected_components(np.ascontiguousarray(mask, np.uint8), connectivity=4, return_N=True)
    return labels, int(count)
