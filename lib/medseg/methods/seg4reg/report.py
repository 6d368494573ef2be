"""What is told of one radiograph: angles of every path, end vertebrae, warnings, and lines to draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.methods.base import Markup, Measurement, Prediction
from medseg.methods.seg4reg.fusion import Paths, Settled, settle
from medseg.methods.seg4reg.geometry import NAMES as VERTEBRA_NAMES
from medseg.methods.seg4reg.geometry import SpineGeometry, measure_mask
from medseg.methods.seg4reg.targets import apply_affine
from medseg.metrics.cobb import CONVENTION
from medseg.metrics.curves import CONVENTION as ANATOMICAL_CONVENTION
from medseg.metrics.spine_corners import skews
from medseg.transforms.grid import spacing_of

if TYPE_CHECKING:
    from medseg.methods.seg4reg.method import Seg4Reg

ORDER = ("max", "second", "third")
LARGE_DISAGREEMENT = 10.0
"""Degrees between two paths from which a reader is warned; ours: about twice what two readers differ by."""

ASKEW = 35.0
"""Degrees between a vertebra and the spine's direction; ours: in the challenge's corners one vertebra passes 27."""

Array = NDArray[np.float64]


def path_measurements(paths: Mapping[str, Array | None]) -> dict[str, Measurement]:
    """`cobb_<path>_max`, `_second`, `_third` of every path that has an answer."""
    return {
        f"cobb_{path}_{name}": Measurement(round(float(value), 2), "deg")
        for path, angles in paths.items()
        if angles is not None
        for name, value in zip(ORDER, angles, strict=True)
    }


def read_path(measurements: Mapping[str, Measurement], path: str) -> Array | None:
    """Inverse of `path_measurements` for one path; "" as path gives the reported angles."""
    keys = [f"cobb_{path}_{name}" if path else f"cobb_{name}" for name in ORDER]
    return np.array([measurements[key].value for key in keys]) if all(key in measurements for key in keys) else None


def complete_prediction(prediction: Prediction, method: Seg4Reg) -> Prediction:
    """Add geometry, the reported angles, facts, warnings and markups to a prediction on the image's own grid."""
    config = method.config
    geometry = None
    if prediction.mask is not None:
        mask = prediction.mask.as_tensor()[0].numpy() > 0
        spacing = spacing_of(prediction.mask)
        geometry = measure_mask(mask, (spacing[0], spacing[1]), method.limits, config.refine_quads)
    paths = Paths(read_path(prediction.measurements, "image"), read_path(prediction.measurements, "mask"), geometry)
    settled = settle(paths, config.geometry_share, config.fewest_vertebrae)
    return replace(
        prediction,
        measurements=_measurements(prediction, paths, settled),
        warnings=(*prediction.warnings, *_warnings(prediction, paths, settled)),
        markups=_markups(prediction, geometry),
        facts={**prediction.facts, **_facts(geometry, settled)},
    )


def _measurements(prediction: Prediction, paths: Paths, settled: Settled) -> dict[str, Measurement]:
    """Reported angles first, then anatomical ones, then what each path says."""
    found: dict[str, Measurement] = {}
    if settled.angles is not None:
        found |= {
            f"cobb_{n}": Measurement(round(float(a), 2), "deg") for n, a in zip(ORDER, settled.angles, strict=True)
        }
    geometry = paths.geometry
    if geometry is not None and geometry.trusted and geometry.curves is not None and geometry.cobb is not None:
        for region in ("pt", "mt", "tl"):
            curve = getattr(geometry.curves, region)
            if curve is not None:
                found[f"cobb_{region}"] = Measurement(round(curve.angle, 2), "deg")
        found |= path_measurements({"geometry": np.array(geometry.cobb.angles)})
    found |= prediction.measurements
    if paths.disagreement is not None:
        found["disagreement"] = Measurement(round(paths.disagreement, 2), "deg")
    if geometry is not None:
        found["vertebrae"] = Measurement(float(geometry.count), "")
    return found


def _facts(geometry: SpineGeometry | None, settled: Settled) -> dict[str, str | float]:
    """Conventions, where the angles come from, and the end vertebrae."""
    facts: dict[str, str | float] = {"cobb_convention": CONVENTION, "cobb_source": settled.source}
    if geometry is None or geometry.cobb is None or not geometry.trusted:
        return facts
    for name, (upper, lower) in zip(ORDER, geometry.cobb.pairs, strict=True):
        facts[f"end_vertebrae_{name}"] = f"{geometry.name(upper)} to {geometry.name(lower)}"
    facts["anatomical_convention"] = ANATOMICAL_CONVENTION
    for region in ("pt", "mt", "tl"):
        curve = getattr(geometry.curves, region)
        if curve is not None:
            apex, ends = geometry.name(curve.apex), f"{geometry.name(curve.upper)} to {geometry.name(curve.lower)}"
            facts[f"end_vertebrae_{region}"] = f"{ends}, apex {apex}"
    return facts


def _warnings(prediction: Prediction, paths: Paths, settled: Settled) -> list[str]:
    found = []
    geometry = paths.geometry
    if geometry is not None and geometry.refused:
        found.append(f"no angles from the mask: {geometry.refused}")
    if settled.angles is None:
        found.append("no angles are reported, because no path has an answer to be believed")
    elif geometry is not None and geometry.refused:
        found.append("the reported angles come from the regression alone; check them")
    if prediction.mask is not None and geometry is not None:
        found += _pose_warnings(prediction.mask, geometry)
    if paths.disagreement is not None and paths.disagreement > LARGE_DISAGREEMENT:
        found.append(f"the paths to the angles differ by {paths.disagreement:.1f} degrees: measure by hand")
    return found


def _pose_warnings(mask: MetaTensor, geometry: SpineGeometry) -> list[str]:
    """What is odd about the picture's pose or single vertebrae."""
    found = []
    spacing = np.array(spacing_of(mask))
    corners = geometry.corners * spacing
    (across, along) = np.ptp(corners.mean(axis=1), axis=0) if geometry.count > 1 else (0.0, 0.0)
    width, height = np.array(mask.shape[1:]) * spacing
    if across > along:
        found.append(
            "the vertebrae lie side by side: the picture seems rotated by 90 degrees, turn it and predict again"
        )
    elif width > height:
        found.append("the picture is wider than high: if it is rotated by 90 degrees, turn it and predict again")
    if geometry.count and len(VERTEBRA_NAMES) != geometry.count and not geometry.refused:
        found.append(f"found {geometry.count} vertebrae instead of 17: levels are numbered, not named")
    askew = skews(corners) > ASKEW if across <= along and geometry.count > 1 else np.zeros(0, bool)
    if askew.any():
        names = ", ".join(geometry.name(int(index)) for index in np.flatnonzero(askew))
        found.append(f"askew to the spine by more than {ASKEW:g} degrees: {names}; check the mask there")
    return found


def _markups(prediction: Prediction, geometry: SpineGeometry | None) -> tuple[Markup, ...]:
    """Middles of the vertebrae, and per angle its two mid-lines and the angle between them, where it is believed."""
    if geometry is None or prediction.mask is None or geometry.count == 0:
        return ()
    affine = prediction.mask.affine.double().numpy()
    centres = apply_affine(affine, geometry.corners.mean(axis=1))
    names = tuple(geometry.name(i) for i in range(geometry.count))
    made = [Markup("Fiducial", "vertebrae", _points(centres), labels=names)]
    if not geometry.trusted or geometry.cobb is None:
        return tuple(made)
    for name, angle, (upper, lower) in zip(ORDER, geometry.cobb.angles, geometry.cobb.pairs, strict=True):
        if upper == lower:
            continue  # an angle of 0 has no two lines
        lines = [mid_line(geometry.corners[i]) for i in (upper, lower)]
        for line, vertebra in zip(lines, (upper, lower), strict=True):
            made.append(Markup("Line", f"{name} {geometry.name(vertebra)}", _points(apply_affine(affine, line))))
        (left, right), (far_left, far_right) = lines
        corner = np.stack([left, right, right + (far_left - far_right)])
        made.append(
            Markup(
                "Angle", f"Cobb {name} of the mask", _points(apply_affine(affine, corner)),
                measurement=Measurement(round(angle, 2), "deg"),
            )
        )  # fmt: skip
    return tuple(made)


def mid_line(quad: Array, reach: float = 1.0) -> Array:
    """(2, 2) left and right end of a vertebra's mid-line, longer by `reach` of its length on both sides."""
    left, right = (quad[0] + quad[2]) / 2, (quad[1] + quad[3]) / 2
    step = reach * (right - left)
    return np.stack([left - step, right + step])


def _points(points: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in point) for point in points)
