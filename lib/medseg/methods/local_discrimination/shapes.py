"""Shape prior: binary masks of any source, how thick they are, and how much of a picture they take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from medseg.cases import IMAGE_SUFFIXES, image_suffix
from medseg.errors import MedsegError, NotFoundError
from medseg.transforms.grid import resize, to_canonical
from medseg.transforms.io import read_mask

Masks = Sequence[torch.Tensor]

TOLERANCE = 1.25  # ours: other cameras frame the same organ differently


def read_shapes(folder: Path, scale: float, dimension: int) -> list[torch.Tensor]:
    """Binary masks of a folder, each (1, *grid) float, resampled by `scale`. Any value above 0 is shape.

    Raises:
        NotFoundError: no such folder, or it holds no mask.
        MedsegError: a mask has other axes than the images, or is empty.
    """
    files = sorted(path for path in folder.iterdir() if image_suffix(path)) if folder.is_dir() else []
    if not files:
        raise NotFoundError(
            f"shapes = {folder} holds no mask; give a folder of binary masks ({', '.join(IMAGE_SUFFIXES)})"
        )
    found = []
    for file in files:
        mask = to_canonical(read_mask(file))
        if mask.ndim - 1 != dimension:
            raise MedsegError(f"shape {file.name} has {mask.ndim - 1} axes, the images have {dimension}")
        if not bool((mask > 0).any()):
            raise MedsegError(f"shape {file.name} is empty; remove it from {folder}")
        size = [max(1, round(n * scale)) for n in mask.shape[1:]]
        binary = mask.clone()
        binary[binary > 0] = 1
        found.append(resize(binary, size, mode="label").as_tensor().float())
    return found


def thickness_of(masks: Masks) -> float:
    """Diameter in voxels of the largest ball inside a shape; median over the shapes."""
    padded = [np.pad(mask[0].numpy(), 1) for mask in masks]  # a shape that is cut does not go on outside
    return 2 * float(np.median([ndimage.distance_transform_edt(mask).max() for mask in padded]))


def shares_of(masks: Masks) -> tuple[float, float]:
    """Smallest and largest share of a picture that a shape takes, with a tolerance."""
    found = [float(mask.mean()) for mask in masks]
    return min(found) / TOLERANCE, min(1.0, max(found) * TOLERANCE)


def bound_share(probability: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Shift the logits of probabilities (*grid) until the share above 0.5 lies within bounds.

    Source: the area prior of the card, sec. 7. A network that knows rendered pictures alone may be as sure of too much
    or too little as of the right thing.
    """
    share = float((probability > 0.5).float().mean())
    wanted = min(max(share, low), high)
    if share == wanted:
        return probability
    logits = torch.logit(probability.double().flatten(), eps=1e-9)
    order = logits.argsort(descending=True, stable=True)
    count = min(max(round(wanted * len(logits)), 0), len(logits))
    shifted = torch.sigmoid(logits - logits[order[min(count, len(logits) - 1)]])
    shifted[order[:count]] = shifted[order[:count]].clamp_min(0.5 + 1e-6)  # a sure network gives many equal values
    shifted[order[count:]] = shifted[order[count:]].clamp_max(0.5)
    return shifted.reshape(probability.shape).to(probability.dtype)
