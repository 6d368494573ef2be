"""Errors of one prediction: of its angles, of its mask, and of its vertebrae."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.cases import Case
from medseg.methods.base import Prediction
from medseg.methods.seg4reg.geometry import Limits, measure_mask
from medseg.methods.seg4reg.report import ORDER, read_path
from medseg.methods.seg4reg.targets import VERTEBRA, Truth, draw_spine, read_truth
from medseg.metrics.overlap import overlap_metrics
from medseg.metrics.quads import quads_of_mask, vertebrae_of_mask
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
    angles = true_angles(known, truth, method.limits)
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
            metrics |= mask_metrics(mask, drawn, None if known.corners is None else len(known.corners))
    return metrics


def mask_metrics(mask: NDArray[np.bool_], truth: NDArray[Any], count: int | None = None) -> dict[str, float]:
    """`dice`, `jaccard`, `vertebra_dice` and `count_failure` of a mask (x, y) against the true one.

    Args:
        mask: predicted.
        truth: true, one value or a number for each vertebra; like the prediction's, its specks count as none.
        count: known number of vertebrae; None: of the true mask.
    """
    overlap = overlap_metrics(mask, truth > 0) if mask.any() or truth.any() else {"dice": 1.0, "jaccard": 1.0}
    true_parts, _, true_numbers = vertebrae_of_mask(truth)
    parts, areas, _ = vertebrae_of_mask(mask)
    scores = []
    for number in true_numbers:
        inside = true_parts == number
        met = np.bincount(parts[inside], minlength=len(areas) + 1)[1:]
        best = int(met.argmax()) if met.any() else None
        scores.append(0.0 if best is None else 2 * met[best] / (inside.sum() + areas[best]))
    found, wanted = len(quads_of_mask(mask)), len(quads_of_mask(truth)) if count is None else count
    return {
        "dice": overlap["dice"],
        "jaccard": overlap["jaccard"],
        "vertebra_dice": float(np.mean(scores)) if scores else overlap["dice"],
        "count_failure": float(found != wanted),
    }


def true_angles(known: Truth, truth: MetaTensor | None, limits: Limits) -> NDArray[np.float64]:
    """(3,) degrees: stored angles, else those of a true mask with a believable number of vertebrae; else NaN."""
    if not np.isnan(known.angles).all() or truth is None:
        return known.angles
    spacing = spacing_of(truth)
    found = measure_mask(truth.as_tensor()[0].numpy(), (spacing[0], spacing[1]), limits)
    return np.array(found.cobb.angles) if found.trusted and found.cobb is not None else known.angles


def true_mask(known: Truth, image: MetaTensor, truth: MetaTensor | None) -> NDArray[Any] | None:
    """A drawn mask (x, y) as it is numbered, else one drawn from the corners; None where neither is known."""
    if truth is not None:
        given: NDArray[Any] = truth.as_tensor()[0].numpy()
        return given
    if known.corners is None:
        return None
    return draw_spine(known.corners, (image.shape[1], image.shape[2])) == VERTEBRA
