from __future__ import annotations

import numpy as np
import pytest

from medseg.methods.seg4reg.fusion import Paths, settle
from medseg.methods.seg4reg.geometry import Limits, SpineGeometry, measure_quads
from medseg.metrics.quads import Quads
from medseg.phantoms.spines import make_spine

IMAGE, MASK = np.array([50.0, 20, 10]), np.array([40.0, 30, 0])


def geometry(count: int = 17) -> SpineGeometry:
    corners = make_spine(2, (384, 1024)).corners[:count]
    return measure_quads(Quads(corners, np.ones(count)), (1.0, 1.0), 1024, Limits())


def test_geometry_is_drawn_towards_the_regression_of_the_mask() -> None:
    found = settle(Paths(IMAGE, MASK, geometry()), 0.75, 6)

    cobb = geometry().cobb
    assert cobb is not None
    assert found.angles == pytest.approx(0.75 * np.array(cobb.angles) + 0.25 * MASK)
    assert found.source == "geometry and regression"


@pytest.mark.parametrize(
    ("paths", "angles", "source"),
    [
        (Paths(IMAGE, MASK, geometry(13)), MASK, "regression"),
        (Paths(IMAGE), IMAGE, "regression"),
        (Paths(IMAGE, MASK, geometry(4)), None, "none"),
        (Paths(geometry=geometry(13)), None, "none"),
        (Paths(), None, "none"),
    ],
)
def test_what_is_reported_without_a_believable_count(paths: Paths, angles: np.ndarray | None, source: str) -> None:
    found = settle(paths, 0.75, 6)

    assert found.source == source
    assert (found.angles is None) if angles is None else np.array_equal(found.angles, angles)  # type: ignore[arg-type]


def test_a_mask_alone_is_believed_as_it_is() -> None:
    found, cobb = settle(Paths(geometry=geometry()), 0.5, 6), geometry().cobb

    assert cobb is not None
    assert found.angles == pytest.approx(cobb.angles)


def test_disagreement_is_the_largest_mean_difference_of_believed_paths() -> None:
    assert Paths(IMAGE, MASK).disagreement == pytest.approx(10)
    assert Paths(IMAGE).disagreement is None
    assert Paths(IMAGE, MASK, geometry(13)).disagreement == pytest.approx(10)
