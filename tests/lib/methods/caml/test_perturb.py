from __future__ import annotations

import pytest
import torch

from medseg.methods.caml.perturb import copy_paste, random_box, shift_intensity


def test_strength_0_changes_nothing_and_1_stays_in_range() -> None:
    image = torch.randn(3, 1, 8, 8, 8)
    assert torch.equal(shift_intensity(image, 0.0), image)
    flat = shift_intensity(torch.ones(200, 1, 4, 4), 1.0).mean(dim=(1, 2, 3))
    assert flat.std() > 0.15  # gain and offset: sd 0.17 each
    assert (flat - 1).abs().max() < 0.6 + 0.3


def test_images_of_a_batch_are_shifted_differently() -> None:
    shifted = shift_intensity(torch.ones(2, 1, 8, 8))
    assert (shifted[0].mean() - shifted[1].mean()).abs() > 1e-4


@pytest.mark.parametrize("grid", [(9, 12), (9, 12, 6)])
def test_box_has_its_edges(grid: tuple[int, ...]) -> None:
    box = random_box(grid, 2 / 3, torch.device("cpu"))
    assert box.shape == (1, 1, *grid)
    assert int(box.sum()) == torch.tensor([round(n * 2 / 3) for n in grid]).prod()


def test_copy_paste_takes_label_and_weight_with_the_voxels() -> None:
    truth = (torch.full((2, 1, 6, 6, 6), 1.0), torch.full((2, 1, 6, 6, 6), 1))
    guess = (torch.full((2, 1, 6, 6, 6), 2.0), torch.full((2, 1, 6, 6, 6), 2))
    images, labels, weights = copy_paste(truth, guess, 0.5)
    assert images.shape == labels.shape == weights.shape == (4, 1, 6, 6, 6)
    assert torch.equal(images, labels.float())
    assert torch.equal(weights, torch.where(labels == 1, 1.0, 0.5))
    assert (labels[:2] == 2).sum() == 2 * 64  # the box of the guess in the labelled image
    assert (labels[2:] == 1).sum() == 2 * 64  # and the other way round
