"""Crops: copies of voxels, turns, places, intensities."""

from __future__ import annotations

import math

import pytest
import torch

from medseg.methods.multidomain.crops import (
    change_intensity,
    crop,
    draw_centre,
    fitted_centre,
    foreground_spots,
)


@pytest.mark.parametrize(("grid", "patch"), [((30, 20), (8, 6)), ((30, 20), (9, 7)), ((12, 10, 7), (4, 6, 3))])
def test_unturned_crop_copies_voxels(grid: tuple[int, ...], patch: tuple[int, ...]) -> None:
    image = torch.arange(float(math.prod(grid))).reshape(1, *grid)
    centre = fitted_centre([n // 2 for n in grid], patch, grid)
    window = tuple(
        slice(round(c - (p - 1) / 2), round(c - (p - 1) / 2) + p) for c, p in zip(centre, patch, strict=True)
    )

    drawn = crop({"image": image, "label": image.int()}, centre, patch)

    torch.testing.assert_close(drawn["image"], image[(slice(None), *window)], atol=2e-3, rtol=0)
    assert torch.equal(drawn["label"], image.int()[(slice(None), *window)])


def test_small_image_is_in_the_middle_of_zeros() -> None:
    image = torch.ones(1, 4, 5)
    drawn = crop({"image": image}, fitted_centre([0, 0], (8, 9), (4, 5)), (8, 9))["image"]

    assert float(drawn.sum()) == pytest.approx(20)
    assert float(drawn[0, 2:6, 2:7].min()) == pytest.approx(1)


def test_quarter_turn_and_flip_move_every_voxel() -> None:
    image = torch.arange(9.0).reshape(1, 3, 3)
    turned = crop({"image": image}, [1, 1], (3, 3), turn=math.pi / 2)["image"]
    flipped = crop({"image": image}, [1, 1], (3, 3), flips=[1])["image"]

    torch.testing.assert_close(turned[0], torch.rot90(image[0], -1, (0, 1)).contiguous(), atol=1e-4, rtol=0)
    torch.testing.assert_close(flipped, image.flip(2))


def test_centre_lies_on_a_drawn_label() -> None:
    label = torch.zeros(1, 20, 20, dtype=torch.uint8)
    label[0, :10], label[0, 15, 15] = 1, 2
    spots = foreground_spots(label)
    generator = torch.Generator().manual_seed(0)

    found = [tuple(draw_centre((20, 20), spots, 1.0, generator)) for _ in range(60)]

    assert {int(label[0][place]) for place in found} == {1, 2}
    assert 15 < sum(place == (15, 15) for place in found) < 45  # labels are drawn first, whatever their size
    empty = foreground_spots(torch.zeros(1, 4, 4, dtype=torch.uint8))
    assert max(draw_centre((4, 4), empty, 1.0, generator)) < 4


def test_intensity_changes_follow_the_generator() -> None:
    image = torch.randn(1, 16, 16)
    one, two = (change_intensity(image, torch.Generator().manual_seed(3)) for _ in range(2))
    many = [change_intensity(image, torch.Generator().manual_seed(seed)) for seed in range(20)]

    assert torch.equal(one, two)
    assert all(found.shape == image.shape and bool(torch.isfinite(found).all()) for found in many)
    assert sum(not torch.allclose(found, image) for found in many) > 10
