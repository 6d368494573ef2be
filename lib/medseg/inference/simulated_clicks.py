"""An annotator who corrects by clicks, for measuring: clicks into the middle of the largest error, again and again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from medseg.inference.clicks import DEFAULT, ClickSettings, correct
from medseg.transforms.components import components

Mask = NDArray[np.integer]


def corrected_by_clicks(
    probabilities: MetaTensor, image: MetaTensor, truth: Mask, clicks: int, settings: ClickSettings = DEFAULT
) -> Iterator[Mask]:
    """The masks after 0, 1, ..., `clicks` clicks.

    Args:
        probabilities: (1 + N, *grid) of the model.
        image: (C, *grid).
        truth: (*grid) whole numbers.
        clicks: how many are made; fewer where nothing is wrong any more, then the last mask repeats.
        settings: of the correction.

    Yields:
        (*grid) whole numbers.
    """
    made: dict[int, list[tuple[int, ...]]] = {}
    mask = _mask(probabilities)
    yield mask
    for _ in range(clicks):
        point = next_click(mask, truth)
        if point is not None:
            made.setdefault(int(truth[point]), []).append(point)
            mask = _mask(correct(probabilities, image, made, settings))
        yield mask


def next_click(mask: Mask, truth: Mask) -> tuple[int, ...] | None:
    """The innermost voxel of the largest connected error of one kind; None where there is no error.

    An error's kind is the label that belongs there.
    """
    best: tuple[int, Mask] | None = None
    for value in np.unique(truth[mask != truth]):
        pieces = components((mask != truth) & (truth == value))
        sizes = np.bincount(pieces.ravel())[1:]
        if sizes.size and (best is None or sizes.max() > best[0]):
            best = int(sizes.max()), pieces == int(sizes.argmax()) + 1
    if best is None:
        return None
    depth = distance_transform_edt(np.pad(best[1], 1))[tuple(slice(1, -1) for _ in range(mask.ndim))]
    return tuple(int(i) for i in np.unravel_index(int(depth.argmax()), mask.shape))


def _mask(probabilities: MetaTensor) -> Mask:
    return np.asarray(probabilities.as_tensor().argmax(dim=0).numpy())
