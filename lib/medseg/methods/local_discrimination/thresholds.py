"""Classical segmentation without labels: what the shape-guided arm must beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.methods.local_discrimination.selection import cluster

CLOSING = 15  # card sec. 3: side of the black-hat's closing, pixels
THIN = 0.05  # ours: shapes whose inscribed radius is below this share of the image count as thin
SAMPLE = 3000  # ours: pixels that k-means looks at

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def is_thin(masks: list[Mask]) -> bool:
    """Whether shapes are thin (vessels) or broad (lungs), by the largest circle inside them."""
    radii = [float(ndimage.distance_transform_edt(mask).max()) / max(mask.shape) for mask in masks if mask.any()]
    return float(np.median(radii)) < THIN if radii else False


def darkness(image: Array, thin: bool) -> Array:
    """How dark a place is: beside its surroundings (black-hat) for thin shapes, else absolutely.

    Args:
        image: (C, *grid); of colour pictures the second channel, green, shows vessels best.
        thin: see `is_thin`.
    """
    grey = image[1] if image.shape[0] == 3 else image[0]
    smooth = ndimage.gaussian_filter(grey, 1.0)
    if not thin:
        return -smooth
    return np.asarray(ndimage.grey_closing(smooth, size=(CLOSING,) * grey.ndim) - smooth)


def otsu_mask(image: Array, inside: Mask, thin: bool) -> Mask:
    """Otsu's threshold of darkness inside the field of view; broad shapes without components at the border."""
    dark = darkness(image, thin)
    return _clean((dark > otsu(dark[inside])) & inside, thin)


def kmeans_mask(image: Array, inside: Mask, thin: bool, seed: int) -> Mask:
    """k-means of every pixel's darkness and smoothed grey values into 3 groups; the darkest group is the shape."""
    dark = darkness(image, thin)
    grey = image[1] if image.shape[0] == 3 else image[0]
    wide = ndimage.gaussian_filter(grey, 4.0)
    table = np.stack([dark[inside], -wide[inside]], axis=1)
    table = (table - table.mean(axis=0)) / np.maximum(table.std(axis=0), 1e-9)
    rows = np.random.default_rng(seed).permutation(len(table))[:SAMPLE]
    groups = cluster(table[rows], 3, seed)
    centres = np.stack([table[rows][groups == g].mean(axis=0) for g in range(3)])
    nearest = ((table[:, None] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
    mask = np.zeros(inside.shape, dtype=bool)
    mask[inside] = nearest == int(centres[:, 0].argmax())
    return _clean(mask, thin)


def otsu(values: Array, bins: int = 256) -> float:
    """The threshold with the largest variance between the two classes (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=bins)
    middle = (edges[:-1] + edges[1:]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * middle)
    total, first, rest = below[-1], below[:-1], below[-1] - below[:-1]
    there = (first > 0) & (rest > 0)
    between = np.where(there, (mass[-1] * first / total - mass[:-1]) ** 2 / np.maximum(first * rest, 1), -1.0)
    return float(edges[int(between.argmax()) + 1])


def _clean(mask: Mask, thin: bool) -> Mask:
    if thin:
        return mask
    labels, _ = ndimage.label(mask)
    border = {int(v) for axis in range(mask.ndim) for end in (0, -1) for v in np.unique(labels.take(end, axis=axis))}
    return mask & ~np.isin(labels, list(border))
