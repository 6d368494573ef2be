"""Embedding maps as pictures: like colours, like places. Landmarks on their image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.methods.base import Markup
from medseg.methods.local_discrimination.points import to_voxels
from medseg.reports.style import colour, new_figure


def embedding_colours(maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Colours of embedding maps, by their three common principal components.

    Args:
        maps: (D, *grid) each, of one or several images; a colour means the same in all of them.

    Returns:
        (3, *grid) in [0, 1] each. Equal vectors have equal colours; a map of one vector is grey.
    """
    rows = torch.cat([level.flatten(1).T for level in maps]).float()
    step = max(1, len(rows) // 20000)
    mean = rows[::step].mean(dim=0)
    _, _, axes = torch.linalg.svd(rows[::step] - mean, full_matrices=False)
    axes = axes[:3] * torch.sign(axes[:3].sum(dim=1, keepdim=True) + 1e-9)  # the same picture from the same maps
    scores = (rows[::step] - mean) @ axes.T
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    found = []
    for level in maps:
        values = (level.flatten(1).T.float() - mean) @ axes.T
        width = high - low
        shares = torch.where(width > 1e-6, (values - low) / width.clamp_min(1e-6), 0.5)
        found.append(shares.clamp(0, 1).T.reshape(3, *level.shape[1:]))
    return found


def landmark_figure(markup: Markup, image: MetaTensor, title: str = "") -> Figure:
    """The landmarks with their names on the image; of a volume on the middle one of the slices that hold them.

    Unsure ones are paler.

    Args:
        markup: points in world coordinates.
        image: (C, *grid).
        title: over the figure.
    """
    axes = image.ndim - 1
    points = to_voxels(torch.tensor([point[:axes] for point in markup.points], dtype=torch.float64), image)
    plane = shown(image)
    if axes == 3:
        plane = plane[:, :, round(float(points[:, 2].median().clamp(0, image.shape[3] - 1)))]
    figure, ((canvas,),) = new_figure(4.0, 4.0 * plane.shape[1] / plane.shape[0] + 0.4)
    canvas.imshow(np.swapaxes(plane, 0, 1), cmap="gray", origin="upper" if axes == 2 else "lower")
    for index, (point, name) in enumerate(zip(points.tolist(), markup.labels, strict=True)):
        sure = markup.confidence[index] if markup.confidence else 1.0
        canvas.plot(point[0], point[1], "o", color=colour(1), markersize=4, alpha=0.3 + 0.7 * sure)
        canvas.annotate(name, point[:2], xytext=(3, 3), textcoords="offset points", fontsize=6, color=colour(4))
    canvas.set_axis_off()
    canvas.set_title(title, fontsize=9)
    return figure


def shown(image: MetaTensor) -> NDArray[Any]:
    """An image as reports draw it: (x, y, 3) colours in 0..255, or the grey values of its first channel."""
    plain = image.as_tensor().numpy()
    colours = plain.shape[0] == 3 and plain.ndim == 3
    return np.moveaxis(plain, 0, -1).astype(np.uint8) if colours else plain[0].astype(np.float32)
