"""Correcting a prediction with clicks: a local update of its probabilities, without training.

Every click says which label one voxel has. The log-probabilities are taken as the mean of a Gaussian process and the
clicks as its observations; its kernel is high between voxels that are near each other and look alike. The update is its
posterior mean (C. E. Rasmussen and C. K. I. Williams, Gaussian Processes for Machine Learning, 2006, eq. 2.25 with
a mean function), so that every click is obeyed, clicks where the model is right hold their surroundings in place, and
what is far away does not change.

It works on top of any model with class probabilities, from its first version on, and costs a few operations per voxel
and click.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medseg.errors import UnusableInputError
from medseg.transforms.components import components
from medseg.transforms.grid import spacing_of

Clicks = Mapping[int, Sequence[Sequence[int]]]
"""Label value (0: background) -> voxel indices on the image's grid."""

FARTHEST = 4.0  # ours: standard deviations of the kernel in space; beyond, it is less than 0.0004

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ClickSettings:
    """How far a click reaches.

    Attributes:
        reach: standard deviation of the kernel in space, as a share of the image's mean extent.
        contrast: standard deviation of the kernel in intensity, in standard deviations of the image.
        smoothing: of the image that intensities are compared in, voxels.
        margin: by how much the clicked label wins at the click, in log-probability.
        noise: variance of an observation, which keeps equal clicks from fighting.
        floor: least probability, which bounds how sure a model may be of itself.
    """

    reach: float = 0.15  # ours: best of 0.05..0.25 on three left atria
    contrast: float = 1.0  # ours: best of 0.25..1 there
    smoothing: float = 1.0  # ours: noise must not decide
    margin: float = 2.0  # ours: 0.88 against 0.12 between two labels
    noise: float = 1e-2  # ours
    floor: float = 1e-4  # ours


DEFAULT = ClickSettings()


def correct(
    probabilities: MetaTensor, image: MetaTensor, clicks: Clicks, settings: ClickSettings = DEFAULT
) -> MetaTensor:
    """Probabilities that agree with clicks.

    Args:
        probabilities: (1 + N, *grid), background first.
        image: (C, *grid) on the same grid.
        clicks: what people said of single voxels.
        settings: how far a click reaches.

    Returns:
        (1 + N, *grid), summing to 1; without clicks, the same as given.

    Raises:
        UnusableInputError: a click lies outside the image, or names a label the model does not have.
    """
    shape = tuple(probabilities.shape[1:])
    points, values = _listed(clicks, shape, probabilities.shape[0])
    if not values:
        return probabilities
    start = torch.log(probabilities.as_tensor().float().clamp(min=settings.floor)).numpy()
    kernel = _Kernel(image, settings)
    wanted = np.zeros((len(values), len(start)), np.float32)
    for row, (point, value) in enumerate(zip(points, values, strict=True)):
        here = start.reshape(len(start), -1)[:, np.ravel_multi_index(point, shape)]
        rival = np.delete(here, value).max()
        wanted[row, value] = max(0.0, settings.margin + rival - here[value])
    weights = np.linalg.solve(kernel.between(points) + settings.noise * np.eye(len(values)), wanted)
    scores = start.copy()
    for point, row in zip(points, weights.astype(np.float32), strict=True):
        box, likeness = kernel.around(point)  # one at a time: a hundred volumes of a CT fill no memory
        for label in np.flatnonzero(row):
            scores[(label, *box)] += row[label] * likeness
    updated = torch.softmax(torch.from_numpy(scores), dim=0)
    kept = _near_clicks(probabilities.as_tensor(), updated, points)
    return MetaTensor(kept, affine=probabilities.affine)


def _listed(clicks: Clicks, shape: tuple[int, ...], labels: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """Points and values; of several clicks on a voxel the last one counts."""
    found: dict[tuple[int, ...], int] = {}
    for value, points in clicks.items():
        if not 0 <= value < labels:
            raise UnusableInputError(f"a click names label {value}, but the model has the labels 0..{labels - 1}")
        for point in points:
            index = tuple(round(float(p)) for p in point)[: len(shape)]
            if len(index) != len(shape) or not all(0 <= i < n for i, n in zip(index, shape, strict=True)):
                size = " x ".join(map(str, shape))
                raise UnusableInputError(f"the click {list(point)} lies outside the image of {size} voxels")
            found[index] = value
    return list(found), list(found.values())


class _Kernel:
    """Likeness of voxels to clicked ones, by place and by looks: 1 at the click."""

    def __init__(self, image: MetaTensor, settings: ClickSettings) -> None:
        looks = np.stack([gaussian_filter(c, settings.smoothing) for c in image.as_tensor().float().numpy()])
        scale = looks.reshape(len(looks), -1).std(axis=1).clip(min=1e-6) * settings.contrast
        self.looks = looks / scale.reshape(-1, *([1] * (looks.ndim - 1)))
        shape, spacing = image.shape[1:], spacing_of(image)
        reach = settings.reach * float(np.mean([n * s for n, s in zip(shape, spacing, strict=True)]))
        self.axes = [np.arange(n, dtype=np.float32) * s / reach for n, s in zip(shape, spacing, strict=True)]

    def between(self, points: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
        """(clicks, clicks): likeness of clicked voxels to each other."""
        where = np.array([[axis[i] for axis, i in zip(self.axes, p, strict=True)] for p in points], np.float64)
        looks = np.array([self.looks[(slice(None), *p)] for p in points], np.float64)
        apart = ((where[:, None] - where[None]) ** 2).sum(-1) + ((looks[:, None] - looks[None]) ** 2).mean(-1)
        return np.asarray(np.exp(-0.5 * apart))

    def around(self, point: tuple[int, ...]) -> tuple[tuple[slice, ...], Array]:
        """The box that a click reaches, and the likeness of its voxels to the clicked one."""
        near = [np.flatnonzero(np.abs(axis - axis[i]) <= FARTHEST) for axis, i in zip(self.axes, point, strict=True)]
        box = tuple(slice(int(n[0]), int(n[-1]) + 1) for n in near)
        apart = [(axis[part] - axis[i]) ** 2 for axis, part, i in zip(self.axes, box, point, strict=True)]
        distance = sum(np.expand_dims(a, [k for k in range(len(apart)) if k != n]) for n, a in enumerate(apart))
        here = self.looks[(slice(None), *point)].reshape(-1, *([1] * len(apart)))
        unlike = ((self.looks[(slice(None), *box)] - here) ** 2).mean(axis=0)
        return box, np.exp(-0.5 * (distance + unlike)).astype(np.float32)


def _near_clicks(before: torch.Tensor, after: torch.Tensor, points: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """The update where the label changes in one piece with a click; elsewhere what was there.

    A region that merely looks alike, without touching, is another matter.
    """
    changed = (before.argmax(dim=0) != after.argmax(dim=0)).numpy()
    pieces = components(changed)
    touched = {int(pieces[point]) for point in points} - {0}
    keep = torch.from_numpy(changed & ~np.isin(pieces, list(touched)))
    return torch.where(keep[None], before.float(), after)
