"""Connected pieces of a mask."""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray


def components(mask: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Connected pieces of a mask of 2 or 3 axes, numbered from 1; neighbours at corners count."""
    return np.asarray(cc3d.connected_components(mask, connectivity=8 if mask.ndim == 2 else 26))


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The piece with the most voxels; of equal ones the first."""
    pieces = components(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return mask & (pieces == sizes.argmax())
