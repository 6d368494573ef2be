"""What looks odd in a mask that is formally right: sentences for the annotator, who decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medseg.transforms.components import components

STRAY_VOXELS = 5  # ours: a separate piece this small is a slip of the brush
STRAY_SHARE = 0.01  # ours: or one with so small a share of its label


def quality_remarks(mask: np.ndarray, labels: Mapping[str, int], usual: Sequence[str] = ()) -> tuple[str, ...]:
    """Remarks on a mask.

    Args:
        mask: (*grid) whole numbers, 2D or 3D.
        labels: name -> value.
        usual: names that nearly all finished labels hold.

    Returns:
        One sentence for each oddity: empty mask, missing labels, stray pieces, labels at the border.
    """
    if not mask.any():
        return ("the label is empty: no voxel is marked; if nothing is there to mark, this is right",)
    present = {name: _cropped(mask == value) for name, value in labels.items() if (mask == value).any()}
    remarks = []
    missing = [name for name in usual if name in labels and name not in present]
    if missing:
        remarks.append(f"{_listed(missing)} is missing, which most finished labels have")
    remarks.extend(remark for name, inside in present.items() if (remark := _stray(name, inside)))
    cut = [name for name, value in labels.items() if name in present and _touches_border(mask == value)]
    if cut:
        remarks.append(f"{_listed(cut)} touches the border of the image; check whether it is cut off")
    return tuple(remarks)


def _stray(name: str, inside: np.ndarray) -> str | None:
    sizes = np.sort(np.bincount(components(inside).ravel())[1:])
    small = sizes[:-1][sizes[:-1] <= max(STRAY_VOXELS, STRAY_SHARE * sizes.sum())]
    if small.size == 0:
        return None
    pieces = "1 small separate piece" if small.size == 1 else f"{small.size} small separate pieces"
    return f"'{name}' has {pieces} ({int(small.sum())} of {int(sizes.sum())} voxels); check for stray strokes"


def _cropped(inside: np.ndarray) -> np.ndarray:
    """The part of a mask that holds anything, for speed."""
    box = tuple(
        slice(int(hits[0]), int(hits[-1]) + 1)
        for axis in range(inside.ndim)
        for hits in [np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))]
    )
    return np.ascontiguousarray(inside[box])


def _touches_border(inside: np.ndarray) -> bool:
    axes = [axis for axis in range(inside.ndim) if inside.shape[axis] > 1]
    return any(bool(inside.take(side, axis=axis).any()) for axis in axes for side in (0, -1))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
