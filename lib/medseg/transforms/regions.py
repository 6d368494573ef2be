"""Region masks from lungs: left and right, thirds along the body axis, and the names of region ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import UnusableInputError

THIRDS = {
    "left_lower": 1, "left_middle": 2, "left_upper": 3, "right_lower": 4, "right_middle": 5, "right_upper": 6
}  # fmt: skip
SIDES = {"left": 1, "right": 2}
LOBES = {
    # dRAM card sec. 6: the sources number the right lobes differently, so every id is mapped explicitly
    "dram": {"left_upper": 1, "left_lower": 2, "right_upper": 3, "right_lower": 4, "right_middle": 5},
    "lungmask": {"left_upper": 1, "left_lower": 2, "right_upper": 3, "right_middle": 4, "right_lower": 5},
    "totalsegmentator": {
        "left_upper": 10, "left_lower": 11, "right_upper": 12, "right_middle": 13, "right_lower": 14
    },
}  # fmt: skip
SCHEMES: Mapping[str, Mapping[str, int]] = {"thirds": THIRDS, "sides": SIDES, **LOBES}

Value = TypeVar("Value")

AIR = -320.0  # HU; ours: half-way between aerated lung and soft tissue, the usual cut of threshold-based lung masks
LUNG_SHARE = 0.005  # ours: a component below this share of the volume is no lung


def split_sides(lungs: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Left (1) and right (2) lung of a lung mask (X, Y, Z) in RAS.

    Two components of similar size are the two lungs; lungs that touch are cut half-way between the centres of two
    clusters of their columns. The side whose centre is lower along the axis that parts them most is called left, as
    x grows to the right in RAS.
    """
    sides = np.zeros(lungs.shape, np.uint8)
    if not lungs.any():
        return sides
    centres = _component_centres(lungs)
    if centres is None:
        centres = _cluster_centres(lungs)
    first, second = centres
    axis = int(np.argmax(np.abs(first - second)))
    left, right = (first, second) if first[axis] <= second[axis] else (second, first)
    index = np.argwhere(lungs)
    nearer_right = ((index[:, :2] - right) ** 2).sum(1) < ((index[:, :2] - left) ** 2).sum(1)
    sides[lungs] = np.where(nearer_right, 2, 1)
    components = _two_components(lungs)
    if components is not None:  # each whole component goes to the side of most of its voxels
        for part in components:
            counts = np.bincount(sides[part], minlength=3)
            sides[part] = np.uint8(1 if counts[1] >= counts[2] else 2)
    return sides


def split_thirds(lungs: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Six regions, numbered as `THIRDS`: each side in three slabs of equal height along z, from the lungs' lowest slice
    to their highest."""
    sides = split_sides(lungs)
    filled = np.flatnonzero(lungs.any(axis=(0, 1)))
    if not len(filled):
        return sides
    low, high = int(filled[0]), int(filled[-1]) + 1
    slab = np.clip((np.arange(lungs.shape[2]) - low) * 3 // max(high - low, 1), 0, 2)
    regions = (sides.astype(np.int64) - 1) * 3 + slab + 1
    return np.where(lungs, regions, 0).astype(np.uint8)


def lungs_of_hu(image: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Lungs of a chest CT (X, Y, Z) in HU: air inside the body, its two largest components, holes closed.

    A fallback where nobody gave region masks. Consolidated parts as dense as muscle are lost at the border, so a mask
    from a lung model or a person is better where extents are high.
    """
    air = image < AIR
    labels, count = ndimage.label(air)
    if not count:
        return np.zeros(image.shape, bool)
    border = np.unique(np.concatenate([labels[[0, -1]].ravel(), labels[:, [0, -1]].ravel()]))
    sizes = np.bincount(labels.ravel())
    sizes[border] = 0
    sizes[0] = 0
    keep = [int(i) for i in np.argsort(sizes)[::-1][:2] if sizes[i] >= LUNG_SHARE * image.size]
    closed = ndimage.binary_closing(np.isin(labels, keep), ndimage.generate_binary_structure(3, 1), iterations=2)
    return np.asarray(ndimage.binary_fill_holes(closed) | np.isin(labels, keep))


def name_regions(regions: NDArray[Any], scheme: str = "auto") -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Region ids and their names, in RAS.

    A lung mask (bool, or one id) is split: into sides where the scheme is "sides", else into six thirds. One id under a
    lobe scheme is that lobe.
    """
    ids = [int(i) for i in np.unique(regions) if i > 0]
    if regions.dtype != bool and (len(ids) > 1 or scheme in LOBES):
        return regions.astype(np.uint8), region_names(ids, scheme)
    lungs = np.asarray(regions > 0)
    if scheme == "sides":
        return split_sides(lungs), region_names(tuple(SIDES.values()), scheme)
    return split_thirds(lungs), region_names(tuple(THIRDS.values()), "thirds")


def region_names(ids: Sequence[int], scheme: str = "auto") -> dict[int, str]:
    """Names of region ids, "" where none is known; "auto": six thirds or two sides where the ids are exactly those."""
    chosen = SCHEMES.get(scheme) or next(
        (names for names in (THIRDS, SIDES) if sorted(names.values()) == sorted(ids)), {}
    )
    names = {index: name for name, index in chosen.items()}
    return {index: names.get(index, "") for index in ids}


def region_id(key: str, present: Mapping[int, str] | None, where: str) -> int:
    """The id that a region's key stands for: a number as text, or a name.

    Args:
        key: as it stands in weak labels.
        present: ids of the region mask with their names ("" where none is known).
        where: named in the error.

    Raises:
        UnusableInputError: no such region; names those that are there.
    """
    known = dict(present or {})
    text = key.strip()
    names = {name.replace(" ", "_").casefold(): index for index, name in known.items() if name}
    index = int(text) if text.isdigit() else names.get(text.replace(" ", "_").replace("-", "_").casefold())
    if index is None or index not in known:
        there = ", ".join(f"{i} ({name})" if name else str(i) for i, name in sorted(known.items()))
        raise UnusableInputError(
            f"{where}: there is no region {key!r} in the region mask; it has {there or 'no region'}"
        )
    return index


def by_region(values: Mapping[str, Value], present: Mapping[int, str] | None, where: str) -> dict[int, Value]:
    """What was said of regions by number or name, by id; arguments as of `region_id`.

    Raises:
        UnusableInputError: no such region, or two different values for one region.
    """
    found: dict[int, tuple[str, Value]] = {}
    for key, value in values.items():
        index = region_id(key, present, where)
        other, before = found.setdefault(index, (key, value))
        if before != value:
            raise UnusableInputError(f"{where}: {other!r} and {key!r} are one region, but say {before} and {value}")
    return {index: value for index, (_, value) in found.items()}


def possible_names(ids: Sequence[int]) -> list[dict[int, str]]:
    """Ids and names of the regions that a mask with these ids may stand for: one for every scheme that knows them all.

    A mask with one id may be a lung mask, which is split; see `name_regions`.
    """
    schemes = [name for name, names in SCHEMES.items() if set(ids) <= set(names.values())]
    if len(ids) == 1:
        split = [region_names(tuple(names.values()), name) for name, names in (("thirds", THIRDS), ("sides", SIDES))]
        return [*split, *(region_names(ids, name) for name in schemes if name in LOBES)]
    return [region_names(ids), *(region_names(ids, name) for name in schemes)]


def _two_components(lungs: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """The two largest components, where the second has at least a fifth of the voxels."""
    labels, count = ndimage.label(lungs)
    if count < 2:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    order = np.argsort(sizes)[::-1]
    if sizes[order[1]] < 0.2 * lungs.sum():
        return None
    return labels == order[0] + 1, labels == order[1] + 1


def _component_centres(lungs: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    parts = _two_components(lungs)
    if parts is None:
        return None
    first, second = (np.argwhere(part)[:, :2].mean(axis=0) for part in parts)
    return first, second


def _cluster_centres(lungs: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (x, y) of two clusters of the lungs' columns: k-means, started along the axis with the wider gap.

    Between two lungs lies the mediastinum, so the profile along the axis that parts them has a dip in its middle.
    """
    columns = lungs.sum(axis=2).astype(np.float64)
    points, weight = np.argwhere(columns > 0).astype(np.float64), columns[columns > 0]
    axis = min((0, 1), key=lambda a: _middle_share(columns.sum(axis=1 - a)))
    centre = np.average(points, axis=0, weights=weight)
    spread = np.zeros(2)
    spread[axis] = max(points[:, axis].std(), 0.5)
    centres = np.stack([centre - spread, centre + spread])
    for _ in range(10):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        for side in (0, 1):
            if weight[nearest == side].sum() > 0:
                centres[side] = np.average(points[nearest == side], axis=0, weights=weight[nearest == side])
    return centres[0], centres[1]


def _middle_share(profile: NDArray[np.float64]) -> float:
    """Share of a profile in the middle fifth of its extent; low where it has a dip."""
    filled = np.flatnonzero(profile)
    low, length = filled[0], filled[-1] + 1 - filled[0]
    middle = profile[low + int(0.4 * length) : low + max(int(np.ceil(0.6 * length)), int(0.4 * length) + 1)]
    return float(middle.mean() / profile[filled].mean())
