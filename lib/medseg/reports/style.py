"""What all plots share: colours, figures, axes. Figures are objects; no global state of matplotlib is touched."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
"""Okabe and Ito's colours, which people with a colour vision deficiency tell apart."""

INK = "#333333"
DPI = 110


def colour(index: int) -> str:
    """Colour of the `index`-th arm, label or curve."""
    return COLOURS[index % len(COLOURS)]


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `width` x `height` inches with a grid of axes, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    grid = np.asarray(figure.subplots(rows, columns, squeeze=False))
    return figure, [list(row) for row in grid]


def plain_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Name the axes, drop the frame's upper and right line, draw light horizontal lines."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    if title:
        axes.set_title(title, fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def shown_picture(file: Path) -> Figure:
    """A picture file as a figure, pixel by pixel."""
    with Image.open(file) as picture:
        values = np.asarray(picture.convert("RGB"))
    figure = Figure(figsize=(values.shape[1] / DPI, values.shape[0] / DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(values)
    axes.set_axis_off()
    return figure


def png_base64(figure: Figure) -> str:
    """The figure as PNG in base64, for a `data:` address; 256 colours make noisy slices a third of the size."""
    drawn, reduced = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    with Image.open(drawn) as image:
        # MAXCOVERAGE keeps rare colours apart: the median cut gives all entries to the greys and merges two oranges
        flat = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        flat.save(reduced, format="png", optimize=True)
    return base64.b64encode(reduced.getvalue()).decode("ascii")
