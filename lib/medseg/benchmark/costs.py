"""What arms tell beside their value (`ArmResult.extra`): costs over the size of the work, and single figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from medseg.reports.curves import scaling_curves
from medseg.reports.page import Block, Fold, Plot
from medseg.reports.tables import make_table

SIZED = re.compile(r"^(.+)_(\d+)$")
"""`seconds_32`: the seconds that a size of 32 takes."""

Sizes = dict[str, dict[str, dict[int, float]]]
"""Figure -> arm -> size -> value."""


def extra_blocks(arms: Mapping[str, Any]) -> list[Block]:
    """A table and a plot over sizes, where arms measured several, and a folded table of all other figures."""
    sized = costs_by_size(arms)
    blocks: list[Block] = []
    if sized:
        sizes = sorted({size for found in sized.values() for values in found.values() for size in values})
        rows = [
            [name, size, *(found.get(name, {}).get(size) for found in sized.values())]
            for name in arms
            for size in sizes
            if any(size in found.get(name, {}) for found in sized.values())
        ]
        curves = {
            figure: {name: sorted(values.items()) for name, values in found.items()} for figure, found in sized.items()
        }
        blocks.append(make_table(["arm", "size", *sized], rows, caption="Cost of one piece of work over its size."))
        blocks.append(Plot(scaling_curves(curves, "size"), "Both axes are logarithmic: a power of the size is a line."))
    return [*blocks, *_single(arms, sized)]


def costs_by_size(arms: Mapping[str, Any]) -> Sizes:
    """The figures that some arm gives for at least two sizes."""
    found: Sizes = {}
    for name, arm in arms.items():
        for key, value in arm["extra"].items():
            match = SIZED.match(key)
            if match and isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(match[1], {}).setdefault(name, {})[int(match[2])] = float(value)
    return {figure: by_arm for figure, by_arm in found.items() if any(len(sizes) > 1 for sizes in by_arm.values())}


def _single(arms: Mapping[str, Any], sized: Sizes) -> list[Block]:
    """Numbers and words that stand for themselves."""
    shown = {
        name: {
            key: value
            for key, value in arm["extra"].items()
            if isinstance(value, int | float | str) and not ((match := SIZED.match(key)) and match[1] in sized)
        }
        for name, arm in arms.items()
    }
    keys = list(dict.fromkeys(key for values in shown.values() for key in values))
    if not keys:
        return []
    rows = [[key, *(values.get(key) for values in shown.values())] for key in keys]
    return [Fold("what else the arms tell", make_table(["figure", *shown], rows))]
