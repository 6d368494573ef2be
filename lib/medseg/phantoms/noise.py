"""Smooth random fields: texture, bias fields and irregular outlines of the phantoms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], cells: Sequence[int]) -> NDArray[np.float64]:
    """(*grid) smooth random field with about `cells` bumps along each axis, mean 0, deviation 1."""
    factors = [n / c for n, c in zip(shape, cells, strict=True)]
    field = zoom(rng.normal(size=tuple(cells)), factors, order=3, mode="nearest", grid_mode=True)
    return np.asarray((field - field.mean()) / field.std())
