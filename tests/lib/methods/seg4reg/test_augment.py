"""What augmentation does to a picture, to its corners and to its angles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.methods.seg4reg.augment import (
    ZOOM,
    Placement,
    back_matrix,
    draw_placement,
    keep_inside,
    move_points,
    moved_tilts,
    place,
)
from medseg.methods.seg4reg.targets import VERTEBRA, draw_spine
from medseg.metrics.cobb import cobb_angles, tilts
from medseg.metrics.quads import quads_of_mask
from medseg.phantoms.spines import make_spine

SHAPE, SIZE = (200, 512), (256, 512)


def moved(corners: np.ndarray, placement: Placement) -> np.ndarray:
    """Corners after a placement, with their names put right where it mirrors."""
    points = torch.from_numpy(corners.reshape(-1, 2))
    found = move_points(points, SHAPE, SIZE, placement).double().numpy().reshape(-1, 4, 2)
    return found[:, [1, 0, 3, 2]] if placement.mirror else found


@pytest.mark.parametrize(
    "placement",
    [
        Placement(),
        Placement(turn=8, shift=(11, -5)),
        Placement(turn=-6, zoom=0.9, mirror=True),
        Placement(zoom=0.95, shift=(-9, 12), mirror=True),
    ],
)
def test_mask_corners_and_tilts_move_together(placement: Placement) -> None:
    spine = make_spine(2, SHAPE)
    mask = torch.from_numpy(draw_spine(spine.corners, SHAPE) == VERTEBRA)[None].float()
    corners = moved(spine.corners, placement)

    placed = place(mask, SIZE, placement, mode="nearest")[0].numpy() > 0.5

    found = quads_of_mask(placed).corners
    assert found.shape == corners.shape
    assert np.abs(found - corners).max() < 3
    expected = moved_tilts(torch.from_numpy(tilts(spine.corners)), placement).numpy()
    assert tilts(corners) == pytest.approx(expected, abs=1e-3)
    assert cobb_angles(corners, SIZE[1]).angles[0] == pytest.approx(spine.angles[0], abs=0.01)


def test_no_vertebra_leaves_the_grid() -> None:
    corners = make_spine(3, SHAPE).corners
    points = torch.from_numpy(corners.reshape(-1, 2))
    room, generator = torch.tensor(SIZE) - 1, torch.Generator().manual_seed(0)

    drawn = [draw_placement(SIZE[1], generator) for _ in range(60)]
    kept = [keep_inside(placement, points, SHAPE, SIZE) for placement in drawn]

    before, after = ([move_points(points, SHAPE, SIZE, p) for p in group] for group in (drawn, kept))
    cut = [bool(((p < 0) | (p > room)).any()) for p in before]
    assert sum(cut) > 10
    assert min(float(torch.minimum(p, room - p).min()) for p in after) > -1e-3
    for one, other, changed in zip(drawn, kept, cut, strict=True):
        assert changed or other.zoom == one.zoom
        assert changed or other.shift == pytest.approx(one.shift, abs=1e-4)
    assert min(p.zoom for p in kept) > ZOOM[0] - 0.05


def test_a_wide_picture_is_moved_to_where_its_vertebrae_are() -> None:
    points = torch.tensor([[400.0, 20.0], [480.0, 500.0]])

    found = keep_inside(Placement(), points, (600, 512), SIZE)

    assert found.zoom == 1
    assert move_points(points, (600, 512), SIZE, found)[1, 0] == pytest.approx(255, abs=1e-3)


def test_where_nobody_knows_the_vertebrae_nothing_is_enlarged_or_pushed_out() -> None:
    drawn = Placement(turn=4, zoom=1.1, shift=(40.0, -15.0))

    enlarged = keep_inside(drawn, None, SHAPE, SIZE)
    smaller = keep_inside(replace(drawn, zoom=0.95), None, SHAPE, SIZE)

    assert (enlarged.zoom, enlarged.shift) == (1, (28, 0))
    assert smaller.shift == pytest.approx(((256 - 190) / 2, -0.05 * 512 / 2))
    assert math.isclose(smaller.turn, 4)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_way_back_leads_to_where_a_point_was(mirror: bool) -> None:
    placement = Placement(turn=8, zoom=1.1, shift=(11, -5), mirror=mirror)
    points = torch.tensor([[3.0, 7.0], [150.0, 400.0]])

    there = move_points(points, SHAPE, SIZE, placement)
    back = back_matrix(SHAPE, SIZE, placement)

    assert torch.allclose(there @ back[:, :2].T + back[:, 2], points, atol=1e-3)


def test_a_wide_picture_without_known_vertebrae_is_shrunk_until_it_fits() -> None:
    placement = keep_inside(Placement(), None, (900, 300), (256, 512))

    edge = move_points(torch.tensor([[0.0, 150.0], [899.0, 150.0]]), (900, 300), (256, 512), placement)

    assert float(edge[:, 0].min()) >= -0.5  # the border of the outermost pixels
    assert float(edge[:, 0].max()) <= 255.5
