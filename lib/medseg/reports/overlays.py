"""Overlays: slices of an image with the true and the predicted contours, and the uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from medseg.reports.style import colour, new_figure


@dataclass(frozen=True)
class Overlay:
    """One case as it is drawn, all arrays on one grid (x, y[, z]).

    Attributes:
        image: intensities, or (x, y, 3) colours in 0..255 of a picture.
        truth: integer mask; None where it is not known.
        prediction: integer mask.
        uncertainty: in [0, 1]; None where the method gives none.
        spacing: mm per voxel along each axis of the grid.
        title: over the figure.
        places: where the arrays hold only chosen slices: their numbers in the whole volume.
        layers: further maps in [0, 1] by name, in the order in which they lead to the prediction.
    """

    image: NDArray[Any]
    truth: NDArray[Any] | None
    prediction: NDArray[Any]
    uncertainty: NDArray[Any] | None = None
    spacing: Sequence[float] = (1.0, 1.0, 1.0)
    title: str = ""
    places: tuple[int, ...] | None = None
    layers: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def draw_overlay(case: Overlay, labels: Mapping[str, int], slices: int = 3) -> Figure:
    """Rows of slices across the structure; columns image, truth, layers, prediction (true contour dotted), uncertainty.

    Args:
        case: what is drawn.
        labels: label name -> index, for colours and the legend.
        slices: how many slices along the last axis of a volume; a picture has one row.
    """
    case = cut_overlay(case, slices)
    places: Sequence[int | None] = case.places if case.places is not None else (None,)
    columns = ["image", *(["truth"] if case.truth is not None else []), *case.layers, "prediction"]
    columns += ["uncertainty"] if case.uncertainty is not None else []
    aspect = float(case.spacing[1]) / float(case.spacing[0])
    tall = case.prediction.shape[1] * aspect / case.prediction.shape[0]
    width = 2.3
    figure, grid = new_figure(
        width * len(columns) + 0.5, width * min(max(tall, 0.3), 3) * len(places) + 0.9, len(places), len(columns)
    )
    window = _window(case.image)
    for number, (row, place) in enumerate(zip(grid, places, strict=True)):
        for axes, column in zip(row, columns, strict=True):
            _draw_cell(axes, case, column, None if place is None else number, (labels, window, aspect))
        row[0].set_ylabel("" if place is None else f"slice {place}", fontsize=8)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column, fontsize=9)
    handles = [Line2D([], [], color=colour(index), label=name) for name, index in labels.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=8)
    if case.title:
        figure.suptitle(case.title, fontsize=10)
    return figure


def cut_overlay(case: Overlay, slices: int) -> Overlay:
    """Only the slices that would be drawn, to keep or store; a picture is returned as it is."""
    if case.prediction.ndim == 2 or case.places is not None:
        return case
    places = choose_slices(case, slices)
    return replace(
        case,
        image=case.image[:, :, places],
        truth=None if case.truth is None else case.truth[:, :, places],
        prediction=case.prediction[:, :, places],
        uncertainty=None if case.uncertainty is None else case.uncertainty[:, :, places],
        layers={name: values[:, :, places] for name, values in case.layers.items()},
        places=tuple(places),
    )


def choose_slices(case: Overlay, count: int) -> list[int]:
    """`count` slices along the last axis, spread evenly through the true (else the predicted) structure."""
    structure = case.truth if case.truth is not None and case.truth.any() else case.prediction
    depth = structure.shape[-1]
    filled = np.flatnonzero(structure.any(axis=(0, 1)))
    low, high = (int(filled[0]), int(filled[-1])) if len(filled) else (0, depth - 1)
    shares = (np.arange(count) + 0.5) / count
    return list(dict.fromkeys(round(low + share * (high - low)) for share in shares))


def _window(image: NDArray[Any]) -> tuple[float, float]:
    """Grey levels from the 1st to the 99th percentile, so that one bright voxel does not darken the rest."""
    low, high = np.percentile(image, [1, 99])
    return float(low), float(high) if high > low else float(low) + 1.0


def _draw_cell(axes: Axes, case: Overlay, column: str, place: int | None, look: tuple[Any, Any, float]) -> None:
    labels, (low, high), aspect = look
    # A picture's y axis points down; a volume in RAS is shown with anterior up.
    origin: Literal["upper", "lower"] = "upper" if place is None else "lower"
    maps = {"uncertainty": case.uncertainty, **case.layers}
    cut = _cut(maps.get(column, case.image), place)
    if column in maps:
        axes.imshow(cut, cmap="magma", vmin=0, vmax=1, origin=origin, aspect=aspect)
    elif cut.ndim == 3:
        axes.imshow(cut.astype(np.uint8), origin=origin, aspect=aspect)
    else:
        axes.imshow(cut, cmap="gray", vmin=low, vmax=high, origin=origin, aspect=aspect)
    if column in ("truth", "prediction"):
        mask = _cut(case.truth if column == "truth" else case.prediction, place)
        for index in labels.values():
            if (mask == index).any():
                axes.contour(mask == index, levels=[0.5], colors=[colour(index)], linewidths=1.0)
    if column == "prediction" and case.truth is not None:
        truth = _cut(case.truth, place)
        for index in labels.values():
            if (truth == index).any():
                axes.contour(truth == index, levels=[0.5], colors=["white"], linewidths=1.0, linestyles="dotted")
    axes.set_xticks([])
    axes.set_yticks([])


def _cut(array: NDArray[Any] | None, place: int | None) -> NDArray[Any]:
    """A slice with rows along y and columns along x."""
    assert array is not None
    plane = array if place is None else array[:, :, place]
    return np.swapaxes(plane, 0, 1)
