"""Landmarks as 3D Slicer saves them (`.mrk.json`), among the weak labels of an image: `{"markups": CONTENT}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medseg.errors import UnusableInputError
from medseg.transforms.io import read_image

SYSTEMS = ("LPS", "RAS")


def take_markups(info: Any, where: str, image: Callable[[], Path]) -> Any:
    """An image's info with landmarks, in mm, in place of markups under `weak`. Other infos are returned as they are.

    Args:
        info: what a client sends.
        where: named in errors.
        image: path of the image; asked for only where there are markups.

    Raises:
        UnusableInputError: both markups and landmarks, or markups that hold no named points.
    """
    weak = info.get("weak") if isinstance(info, Mapping) else None
    if not isinstance(weak, Mapping) or "markups" not in weak:
        return info
    rest = {key: value for key, value in weak.items() if key != "markups"}
    if rest.get("landmarks"):
        raise UnusableInputError(f"{where}: weak holds landmarks and markups; give one of them")
    picture = read_image(image()).ndim == 3
    found = points_of(weak["markups"], where, picture)
    return {**info, "weak": {**rest, "landmarks": found, "landmark_unit": "mm"}}


def points_of(content: Any, where: str, picture: bool) -> dict[str, list[float]]:
    """Named points of a markups file, in world coordinates by the image's affine: RAS of volumes, x and y of pictures.

    The inverse of `medseg.inference.markups.markups_json`. Points that are not placed are left out.

    Raises:
        UnusableInputError: not such a file's content, an unknown coordinate system, no name, or one name twice.
    """
    try:
        placed = [
            (str(point["label"]), _world(point["position"], markup.get("coordinateSystem", "LPS"), picture))
            for markup in content["markups"]
            if markup["type"] == "Fiducial"
            for point in markup["controlPoints"]
            if point.get("positionStatus", "defined") == "defined"
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableInputError(
            f"{where}: markups are not the content of a .mrk.json of fiducials in {' or '.join(SYSTEMS)} ({error})"
        ) from error
    names = [name for name, _ in placed]
    if twice := sorted({name for name in names if not name or names.count(name) > 1}):
        problem = f"{twice[0]!r} stands twice" if twice[0] else "one has no name"
        raise UnusableInputError(f"{where}: markups must name every point differently; {problem}")
    if not names:
        raise UnusableInputError(f"{where}: markups hold no placed fiducial; place points and save again")
    return dict(placed)


def _world(position: Any, system: str, picture: bool) -> list[float]:
    if system not in SYSTEMS:
        raise ValueError(f"coordinateSystem {system!r}")
    left, posterior, superior = map(float, position)
    if system == "RAS":
        left, posterior = -left, -posterior
    return [left, posterior] if picture else [-left, -posterior, superior]
