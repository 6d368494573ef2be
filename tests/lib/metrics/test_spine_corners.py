from __future__ import annotations

import numpy as np
import pytest

from medseg.metrics.spine_corners import check_spine
from medseg.phantoms.spines import make_spine


def test_a_good_spine_stays_as_it_is() -> None:
    for seed in range(8):
        corners = make_spine(seed).corners

        found = check_spine(corners)

        assert found.corners is not None
        assert np.array_equal(found.corners, corners)
        assert (found.repaired, found.faults) == ((), ())


def test_swapped_corners_and_disordered_vertebrae_are_put_right() -> None:
    corners = make_spine(2).corners
    mixed = corners.copy()
    mixed[4] = mixed[4][[1, 0, 3, 2]]
    mixed[9] = mixed[9][[2, 3, 0, 1]]
    mixed[[6, 7]] = mixed[[7, 6]]

    found = check_spine(mixed)

    assert found.corners is not None
    assert np.array_equal(found.corners, corners)
    assert found.repaired == ("2 vertebrae out of order", "swapped corners in 2 vertebrae")


def test_steep_vertebrae_are_not_taken_for_swapped_ones() -> None:
    corners = make_spine(0, (400, 512), tilts=np.linspace(-58, 58, 17)).corners

    assert check_spine(corners).repaired == ()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda c: c[5].__setitem__(slice(None), c[4] + 1.0), "lie on each other"),
        (lambda c: c[5].__setitem__(1, c[5, 0]), "no length"),
        (lambda c: c[8].__setitem__(0, c[8].mean(axis=0) + 0.3 * (c[8, 3] - c[8, 0])), "convex"),
    ],
)
def test_what_cannot_be_put_right_is_named(change, fault) -> None:  # type: ignore[no-untyped-def]
    corners = make_spine(3).corners
    change(corners)

    found = check_spine(corners)

    assert found.corners is None
    assert any(fault in sentence for sentence in found.faults)
