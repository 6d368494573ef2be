"""Simulated shapes without pictures: vessel trees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

TRUNKS = 6  # vessels that leave the disc
TAPER = 0.985  # radius from one step to the next
BRANCHING = 0.022  # probability of a branch at a step
THINNEST = 0.6  # radius in pixels of a 512-pixel picture


def draw_vessels(seed: int, shape: Sequence[int]) -> NDArray[np.bool_]:
    """A tree of vessels that leave a disc beside the middle, bend, branch and taper, inside a round field of view.

    Args:
        seed: equal seeds give equal trees.
        shape: (x, y) pixels.
    """
    rng = np.random.default_rng(seed)
    size = np.asarray(shape, dtype=np.float64)
    scale = float(size.min()) / 512
    disc = size / 2 + np.array([rng.choice([-1, 1]) * rng.uniform(0.15, 0.3), rng.uniform(-0.05, 0.05)]) * size
    angles = 2 * np.pi * (np.arange(TRUNKS) + rng.uniform(-0.3, 0.3, TRUNKS)) / TRUNKS
    open_ends = [(disc.copy(), float(angle), rng.uniform(3.0, 5.0) * scale) for angle in angles]
    radius = np.zeros(tuple(int(n) for n in shape))
    while open_ends:
        place, angle, width = open_ends.pop()
        bend = 0.0
        while width > THINNEST * scale and (place >= 0).all() and (place < size - 1).all():
            x, y = place.astype(int)
            radius[x, y] = max(radius[x, y], width)
            bend = 0.9 * bend + 0.012 * rng.standard_normal()
            angle += bend
            place = place + scale * np.array([np.cos(angle), np.sin(angle)])
            width *= TAPER ** (0.35 * rng.uniform(0.3, 1.7))
            if rng.random() < BRANCHING:
                side = rng.choice([-1, 1]) * rng.uniform(0.4, 1.0)
                open_ends.append((place.copy(), angle + side, width * rng.uniform(0.6, 0.85)))
    away, nearest = distance_transform_edt(radius == 0, return_indices=True)
    field = np.linalg.norm(np.indices(radius.shape) - (size / 2).reshape(2, 1, 1), axis=0) < size.min() / 2
    return np.asarray((away <= np.maximum(radius[tuple(nearest)], 0.7)) & field)
