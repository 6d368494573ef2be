"""How a prediction is judged: lesion overlap inside the lungs, extents per region, false positives."""

from __future__ import annotations

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.methods.base import Prediction
from medseg.methods.dram.extents import measured_percent
from medseg.metrics.overlap import overlap_metrics
from medseg.metrics.table import segmentation_metrics
from medseg.transforms.grid import to_canonical
from medseg.transforms.regions import split_thirds

NONE = 0.05
"""Per cent: a region with less true lesion counts as one of extent 0."""


def judge(prediction: Prediction, truth: MetaTensor, lesion: int, *, shows_lungs: bool) -> dict[str, float]:
    """Metrics of one case (dRAM card sec. 2).

    Args:
        prediction: on the image's own grid.
        truth: (1, *grid) mask.
        lesion: number of the lesion label.
        shows_lungs: all labels of the mask together are the lungs; else it shows lesions only.

    Returns:
        `iou`, `dice`, `hd95_*`, ... of the lesion inside the true lungs (everywhere, where the mask knows no lungs);
        `iou_image`, `dice_image` over the whole image; `lung_dice`; `extent_error`, mean absolute error in points over
        six lung thirds; `false_positive_extent`, per cent of the regions without disease that is called diseased;
        `entropy`, mean over the true lungs.
    """
    assert prediction.mask is not None
    pred, real = (to_canonical(m).as_tensor()[0].cpu().numpy() for m in (prediction.mask, truth))
    found, true = pred == lesion, real == lesion
    lungs = real > 0 if shows_lungs else np.ones_like(true)
    spacing = tuple(float(s) for s in to_canonical(truth).pixdim)
    metrics = segmentation_metrics((found & lungs).astype(np.uint8), true.astype(np.uint8), {"lesion": 1}, spacing)
    whole = overlap_metrics(found, true)
    metrics = {"iou": metrics["jaccard"], **metrics, "iou_image": whole["jaccard"], "dice_image": whole["dice"]}
    if shows_lungs:
        metrics["lung_dice"] = overlap_metrics(pred > 0, lungs)["dice"]
        metrics |= _extents(found & lungs, true, lungs)
    if prediction.uncertainty is not None and lungs.any():
        entropy = to_canonical(prediction.uncertainty).as_tensor()[0].cpu().numpy()
        metrics["entropy"] = float(entropy[lungs].mean())
    return metrics


def _extents(found: NDArray[np.bool_], true: NDArray[np.bool_], lungs: NDArray[np.bool_]) -> dict[str, float]:
    regions = split_thirds(lungs)
    said, real = measured_percent(found, regions), measured_percent(true, regions)
    if not real:
        return {}
    result = {"extent_error": float(np.mean([abs(said[i] - real[i]) for i in real]))}
    healthy = [i for i in real if real[i] < NONE]
    if healthy:
        result["false_positive_extent"] = float(np.mean([said[i] for i in healthy]))
    return result
