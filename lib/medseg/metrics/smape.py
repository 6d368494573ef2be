"""Errors of Cobb angles as the challenge and its followers count them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def smape(found: ArrayLike, truth: ArrayLike) -> float:
    """Image-wise SMAPE of one image in per cent: 100 sum |p - g| / sum (p + g), without a factor 1/2.

    Angles whose truth is NaN are left out; 0 where found and truth are all 0.

    Source: Seg4Reg card sec. 3.
    """
    p, g = _known(found, truth)
    total = float((p + g).sum())
    return 100 * float(np.abs(p - g).sum()) / total if total > 0 else 0.0


def angle_errors(found: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """All errors of one image.

    Args:
        found: (K,) degrees.
        truth: (K,) degrees, NaN where unknown.

    Returns:
        `smape` (%), `mae` and `mae_1`, `mae_2`, ... (deg), `smape_1`, ... (%, per angle, denominator + 1e-5), `cmae`
        (deg, circular mean of the errors), `manhattan`, `euclidean`, `chebyshev` (deg: sum, L2 norm and maximum).

    Raises:
        ValueError: no angle is known.

    Source: Seg4Reg card sec. 3.
    """
    p, g = _known(found, truth)
    if len(g) == 0:
        raise ValueError("no true angle is known")
    error = np.abs(p - g)
    names = [str(k + 1) for k in np.flatnonzero(~np.isnan(np.asarray(truth, dtype=np.float64)))]
    radians = np.radians(error)
    circular = np.degrees(np.arctan2(np.sin(radians).sum(), np.cos(radians).sum()))
    return {
        "smape": smape(p, g),
        "mae": float(error.mean()),
        **{f"mae_{name}": float(e) for name, e in zip(names, error, strict=True)},
        **{f"smape_{name}": float(100 * e / (a + b + 1e-5)) for name, e, a, b in zip(names, error, p, g, strict=True)},
        "cmae": float(circular),
        "manhattan": float(error.sum()),
        "euclidean": float(np.linalg.norm(error)),
        "chebyshev": float(error.max()),
    }


def _known(found: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    p, g = np.asarray(found, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if p.shape != g.shape:
        raise ValueError(f"found angles have shape {p.shape}, true ones {g.shape}")
    return p[~np.isnan(g)], g[~np.isnan(g)]
