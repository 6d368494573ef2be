"""Distances between the surfaces of two binary masks: HD95 and the average symmetric surface distance.

The surface of a mask is its voxels with at least one face neighbour outside the mask; beyond the image counts as
outside. Distances run between voxel centres, from each surface voxel to the nearest surface voxel of the other mask.
These definitions are those of medpy, in which the semi-supervised literature reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree


def surface_points(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Voxel indices (n, axes) of the surface of a mask (*grid)."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    middle = slice(1, -1)
    for axis in range(mask.ndim):
        for shifted in (slice(None, -2), slice(2, None)):
            window = [middle] * mask.ndim
            window[axis] = shifted
            inner &= padded[tuple(window)]
    return np.argwhere(mask & ~inner)


def surface_distances(
    pred: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directed distances between two surfaces.

    Args:
        pred: (*grid) a mask with at least one voxel.
        truth: (*grid) a mask with at least one voxel.
        spacing: mm per voxel along each axis; ones give distances in voxels.

    Returns:
        For each surface voxel of `pred` the distance to the surface of `truth`, and the other way round.
    """
    scale = np.asarray(spacing, dtype=float)
    points_pred, points_truth = surface_points(pred) * scale, surface_points(truth) * scale
    to_truth, _ = cKDTree(points_truth).query(points_pred)
    to_pred, _ = cKDTree(points_pred).query(points_truth)
    return to_truth, to_pred


def hd95(to_truth: NDArray[np.float64], to_pred: NDArray[np.float64]) -> float:
    """95th percentile of the directed distances of both directions, pooled."""
    return float(np.percentile(np.concatenate([to_truth, to_pred]), 95))


def average_surface_distance(to_truth: NDArray[np.float64], to_pred: NDArray[np.float64]) -> float:
    """Mean of the two directed mean distances, so that the larger surface does not outweigh the other."""
    return float((to_truth.mean() + to_pred.mean()) / 2)


def worst_distance(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """The diagonal of the image, which stands for the distance of a structure that was missed or invented."""
    return math.hypot(*(n * s for n, s in zip(shape, spacing, strict=True)))
