"""What people see: a radiograph with its angles, and how well an arm agrees with the truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from monai.data import MetaTensor

from medseg.methods.base import Prediction
from medseg.methods.seg4reg.geometry import Limits, measure_mask
from medseg.methods.seg4reg.report import ORDER, mid_line, read_path
from medseg.reports.page import Block, Fold, Plot
from medseg.reports.spine import AngleLines, SpinePicture, bland_altman, draw_spine_picture
from medseg.reports.tables import make_table
from medseg.transforms.grid import spacing_of

COLUMNS = ("smape", "missed", "mae_1", "mae_2", "mae_3", "dice", "vertebra_dice", "count_failure", "refused")


def spine_figure(prediction: Prediction, image: MetaTensor, title: str, limits: Limits, refine: bool) -> Figure | None:
    """The picture of a finished prediction; None without a mask."""
    if prediction.mask is None:
        return None
    spacing = spacing_of(image)
    mask = prediction.mask.as_tensor()[0].cpu().numpy() > 0
    found = measure_mask(mask, (spacing[0], spacing[1]), limits, refine)
    lines = []
    if found.trusted and found.cobb is not None:
        for name, angle, (upper, lower) in zip(ORDER, found.cobb.angles, found.cobb.pairs, strict=True):
            if upper != lower:
                ends = np.stack([mid_line(found.corners[upper]), mid_line(found.corners[lower])])
                text = f"{name} in the mask {angle:.1f} deg, {found.name(upper)} to {found.name(lower)}"
                lines.append(AngleLines(text, ends))
    names = [found.name(index) if found.count == 17 else str(index + 1) for index in range(found.count)]
    grey = image.as_tensor().float().mean(dim=0).numpy()
    heading = "\n".join(filter(None, (title, _reported(prediction))))
    picture = SpinePicture(grey, found.corners, names, lines, (spacing[0], spacing[1]), heading, prediction.warnings)
    return draw_spine_picture(picture)


def _reported(prediction: Prediction) -> str:
    """The angles that are reported, which may differ from those of the lines, and where they come from."""
    angles = read_path(prediction.measurements, "")
    if angles is None:
        return ""
    told = ", ".join(f"{name} {angle:.1f}" for name, angle in zip(ORDER, angles, strict=True))
    return f"reported: {told} deg (from {prediction.facts['cobb_source']})"


def agreement_blocks(cases: Mapping[str, Mapping[str, float]]) -> list[Block]:
    """Bland-Altman plot of the three angles and a table of all cases, from the metrics of one arm."""
    answered = [metrics for metrics in cases.values() if not metrics.get("missed")]
    pairs = {}
    for name in ORDER:
        known = [m for m in answered if f"found_{name}" in m and f"true_{name}" in m]
        if len(known) > 1:
            pairs[name] = ([m[f"found_{name}"] for m in known], [m[f"true_{name}"] for m in known])
    if not pairs:
        return []
    caption = "Found minus true angle over their mean. Solid: bias; dashed: 95 % limits of agreement."
    if without := len(cases) - len(answered):
        caption += f" Left out: {without} of {len(cases)} cases for which the method gives no angles."
    columns = [name for name in COLUMNS if any(name in metrics for metrics in cases.values())]
    angles = [f"{kind}_{name}" for name in ORDER for kind in ("found", "true")]
    rows = [[case, *(metrics.get(key) for key in (*angles, *columns))] for case, metrics in cases.items()]
    header = ["case", *(key.replace("_", " ") for key in (*angles, *columns))]
    return [Plot(bland_altman(pairs), caption), Fold("angles of every case", make_table(header, rows))]
