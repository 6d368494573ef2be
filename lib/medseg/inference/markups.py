"""Points, lines and angles as 3D Slicer markups (`.mrk.json`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from medseg.methods.base import Markup

SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"


def markups_json(markups: Iterable[Markup]) -> dict[str, Any]:
    """The content of a markups file.

    Points go from RAS to LPS. Those of pictures (two coordinates) keep their signs and get z = 0: Slicer lays a picture
    that states no place along L and P.
    """
    return {"@schema": SCHEMA, "markups": [_markup(markup) for markup in markups]}


def _markup(markup: Markup) -> dict[str, Any]:
    names = markup.labels or tuple(str(number) for number in range(1, len(markup.points) + 1))
    confidence: Sequence[float | None] = markup.confidence or (None,) * len(markup.points)
    points = [
        {
            "id": str(number),
            "label": name,
            "description": "" if sure is None else f"confidence {sure:.2f}",
            "position": _lps(point),
            "selected": True,
            "locked": False,
            "visibility": True,
            "positionStatus": "defined",
        }
        for number, (point, name, sure) in enumerate(zip(markup.points, names, confidence, strict=True), start=1)
    ]
    return {
        "type": markup.kind,
        "name": markup.name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "labelFormat": "%N",
        "controlPoints": points,
        "measurements": _measurements(markup),
    }


def _measurements(markup: Markup) -> list[dict[str, Any]]:
    if markup.measurement is None:
        return []
    return [
        {
            "name": "angle" if markup.kind == "Angle" else "length" if markup.kind == "Line" else markup.name,
            "enabled": True,
            "value": float(markup.measurement.value),
            "units": markup.measurement.unit,
            "printFormat": "%.1f %s",
        }
    ]


def _lps(point: Sequence[float]) -> list[float]:
    if len(point) == 2:
        return [float(point[0]), float(point[1]), 0.0]
    return [-float(point[0]), -float(point[1]), float(point[2])]
