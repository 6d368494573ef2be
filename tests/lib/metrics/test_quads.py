from __future__ import annotations

import numpy as np
import pytest

from medseg.methods.seg4reg.targets import VERTEBRA, draw_spine
from medseg.metrics.cobb import cobb_angles, tilts
from medseg.metrics.quads import cross_axis, quads_of_mask
from medseg.phantoms.spines import make_spine


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_masks_of_phantoms_give_their_angles_within_a_degree_and_a_half(seed: int) -> None:
    spine = make_spine(seed, (384, 1024))

    found = quads_of_mask(draw_spine(spine.corners, (384, 1024)) == VERTEBRA)

    assert len(found) == 17
    assert np.abs(np.array(cobb_angles(found.corners, 1024).angles) - spine.angles).max() < 1.5
    assert np.abs(tilts(found.corners) - tilts(spine.corners)).max() < 1.2
    assert np.abs(found.corners - spine.corners).max() < 3


def test_specks_are_dropped_and_counted() -> None:
    spine = make_spine(1, (192, 512))
    mask = draw_spine(spine.corners, (192, 512)) == VERTEBRA
    mask[2:5, 2:5] = True
    mask[180:183, 500:502] = True

    found = quads_of_mask(mask)

    assert (len(found), found.dropped) == (17, 2)


def test_an_empty_mask_and_a_line_give_nothing() -> None:
    line = np.zeros((40, 40), bool)
    line[3:30, 7] = True

    assert len(quads_of_mask(np.zeros((40, 40), bool))) == 0
    assert len(quads_of_mask(line)) == 0


@pytest.mark.parametrize("refine", [False, True])
def test_vertebrae_steeper_than_45_degrees_keep_their_axes(refine: bool) -> None:
    spine = make_spine(0, (400, 1024), tilts=np.linspace(-58, 58, 17))

    found = quads_of_mask(draw_spine(spine.corners, (400, 1024)) == VERTEBRA, refine)

    assert len(found) == 17
    assert np.abs(tilts(found.corners) - np.linspace(-58, 58, 17)).max() < 2
    assert np.abs(found.corners - spine.corners).max() < 3


@pytest.mark.parametrize(("turn", "down"), [(12, (0.0, 1.0)), (12, (0.0, 0.0)), (57, (-0.8, 0.6)), (-57, (0.8, 0.6))])
def test_cross_axis_of_a_tall_tilted_box(turn: float, down: tuple[float, float]) -> None:
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    box = np.array([[0, 0], [4, 0], [4, 10], [0, 10]]) @ np.array([[c, s], [-s, c]])

    assert cross_axis(box, np.array(down)) == pytest.approx([c, s])


def test_fitted_sides_find_corners_that_are_rounded_off() -> None:
    mask = np.zeros((60, 40), bool)
    mask[10:50, 10:30] = True
    for x, y in ((10, 10), (49, 10), (10, 29), (49, 29)):
        mask[max(x - 2, 0) : x + 3, max(y - 2, 0) : y + 3] = False

    extreme, fitted = (quads_of_mask(mask, refine).corners[0] for refine in (False, True))

    true = np.array([[10, 10], [49, 10], [10, 29], [49, 29]])
    assert np.abs(fitted - true).max() < 0.4
    assert np.abs(extreme - true).max() > 2
