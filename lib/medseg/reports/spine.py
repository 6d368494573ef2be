"""Pictures of Cobb angles: the radiograph with vertebrae, end plates and angle lines, and a Bland-Altman plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medseg.reports.style import INK, colour, new_figure, plain_axes

Array = NDArray[np.float64]
OUTLINE = "#56B4E9"
END_PLATE = "#00C2A8"
LARGEST = 11.0
"""Inches of the picture's longer side."""


@dataclass(frozen=True)
class AngleLines:
    """One angle as it is drawn.

    Attributes:
        name: for the legend, with the value ("max 41.2 deg, T5 to T12").
        lines: (2, 2, 2): two lines, each from left to right, in pixels.
    """

    name: str
    lines: Array


@dataclass(frozen=True)
class SpinePicture:
    """A radiograph and what was found in it.

    Attributes:
        image: (x, y) grey values.
        corners: (N, 4, 2) in pixels: top-left, top-right, bottom-left, bottom-right.
        names: one per vertebra.
        angles: lines of each angle.
        spacing: size of a pixel along x and y.
        title: over the picture.
        notes: sentences under it, warnings for example.
    """

    image: NDArray[Any]
    corners: Array
    names: Sequence[str] = ()
    angles: Sequence[AngleLines] = ()
    spacing: tuple[float, float] = (1.0, 1.0)
    title: str = ""
    notes: Sequence[str] = field(default=())


def draw_spine_picture(picture: SpinePicture) -> Figure:
    """The plain radiograph, and beside it the same with outlines, end plates, names and angle lines."""
    x, y = picture.image.shape
    aspect = picture.spacing[1] / picture.spacing[0]
    tall = y * aspect / x
    height = min(LARGEST, 5.0 * max(tall, 0.5)) + 1.2
    width = 2 * (height - 1.2) / max(tall, 0.2) + 0.4
    figure, [[plain, drawn]] = new_figure(min(max(width, 6.0), 16.0), height, columns=2)
    low, high = np.percentile(picture.image, [1, 99])
    for axes in (plain, drawn):
        axes.imshow(picture.image.T, cmap="gray", vmin=low, vmax=max(high, low + 1), aspect=aspect)
        axes.set_xticks([])
        axes.set_yticks([])
    _draw_vertebrae(drawn, picture)
    for number, angle in enumerate(picture.angles):
        for which, (left, right) in enumerate(angle.lines):
            label = angle.name if which == 0 else None
            style = colour(number + 1)
            drawn.plot([left[0], right[0]], [left[1], right[1]], color=style, linewidth=1.8, label=label)
    drawn.set_xlim(plain.get_xlim())
    drawn.set_ylim(plain.get_ylim())
    if picture.angles:
        figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=1)
    if picture.title or picture.notes:
        figure.suptitle("\n".join([picture.title, *picture.notes]).strip(), fontsize=9, color=INK, wrap=True)
    return figure


def bland_altman(pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit: str = "deg") -> Figure:
    """Difference against mean of found and true values, with bias and 95 % limits of agreement, one panel per name.

    Args:
        pairs: name -> (found, true), of equal length; at least two pairs each for limits.
        unit: of the values.

    Source: Bland and Altman, Lancet 1986: limits are the bias plus and minus 1.96 standard deviations.
    """
    figure, [row] = new_figure(3.6 * len(pairs) + 0.4, 3.6, columns=len(pairs))
    for index, (axes, (name, (found, true))) in enumerate(zip(row, pairs.items(), strict=True)):
        a, b = np.asarray(found, dtype=np.float64), np.asarray(true, dtype=np.float64)
        axes.scatter((a + b) / 2, a - b, s=12, color=colour(index), alpha=0.7, linewidths=0)
        bias, (low, high) = limits_of_agreement(a, b)
        for value, style in ((bias, "-"), (low, "--"), (high, "--")):
            axes.axhline(value, color=INK, linewidth=1, linestyle=style)
            axes.annotate(
                f"{value:+.1f}", (1, value), xycoords=("axes fraction", "data"), fontsize=8, ha="right", va="bottom"
            )
        plain_axes(axes, f"mean of found and true [{unit}]", f"found - true [{unit}]" if index == 0 else "", name)
    return figure


def limits_of_agreement(found: Array, true: Array) -> tuple[float, tuple[float, float]]:
    """Mean of found - true, and the mean plus and minus 1.96 standard deviations (n - 1)."""
    difference = found - true
    bias = float(difference.mean())
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return bias, (bias - spread, bias + spread)


def _draw_vertebrae(axes: Axes, picture: SpinePicture) -> None:
    for index, quad in enumerate(picture.corners):
        ring = quad[[0, 1, 3, 2, 0]]
        axes.plot(ring[:, 0], ring[:, 1], color=OUTLINE, linewidth=0.8)
        for plate in (quad[:2], quad[2:]):
            axes.plot(plate[:, 0], plate[:, 1], color=END_PLATE, linewidth=1.2)
        if index < len(picture.names):
            right = quad[[1, 3]].mean(axis=0)
            step = right - quad.mean(axis=0)
            place = (float(right[0] + 0.35 * step[0]), float(right[1] + 0.35 * step[1]))
            axes.annotate(picture.names[index], place, fontsize=7, color="#FFD54A", va="center")
