"""Stronger perturbations of training crops, drawn on their device: options beside the paper's form."""

from __future__ import annotations

from collections.abc import Sequence

import torch

KINDS = ("none", "intensity")


def shift_intensity(image: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    """Random gain (1 +- 0.3 s), offset (+- 0.3 s) and Gaussian noise (sd up to 0.2 s) for every image of a batch.

    Ours: ranges for z-scored images, after the strong view of FixMatch-like methods.

    Args:
        image: (B, C, *grid), mean 0 and standard deviation 1.
        strength: s.
    """
    shape = (image.shape[0], *[1] * (image.ndim - 1))
    gain, offset, spread = (torch.rand(shape, device=image.device) for _ in range(3))
    noise = torch.randn_like(image) * spread * 0.2 * strength
    return image * (1 + 0.3 * strength * (2 * gain - 1)) + 0.3 * strength * (2 * offset - 1) + noise


def random_box(grid: Sequence[int], share: float, device: torch.device) -> torch.Tensor:
    """Mask (1, 1, *grid) bool of one box at a random place, its edges `share` of the grid's."""
    mask = torch.zeros(1, 1, *grid, dtype=torch.bool)
    window = [slice(None), slice(None)]
    for length in grid:
        edge = max(1, round(length * share))
        start = int(torch.randint(length - edge + 1, ()))
        window.append(slice(start, start + edge))
    mask[tuple(window)] = True
    return mask.to(device, non_blocking=True)


def copy_paste(
    truth: tuple[torch.Tensor, torch.Tensor], guess: tuple[torch.Tensor, torch.Tensor], guess_weight: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Paste a box of unlabelled images into labelled ones and the other way round.

    Source: Bai et al., BCP, CVPR 2023, arXiv 2305.00673: box edges 2/3 of the patch, weight 0.5 where the label is a
    guess. Deviation: the same box serves both directions.

    Args:
        truth: labelled images (B, C, *grid) and their labels (B, 1, *grid).
        guess: unlabelled images and pseudo-labels of the same shapes.
        guess_weight: weight of voxels whose label is a guess.

    Returns:
        Mixed images (2B, C, *grid), labels (2B, 1, *grid) and voxel weights (2B, 1, *grid).
    """
    (image, label), (other, pseudo) = truth, guess
    box = random_box(image.shape[2:], 2 / 3, image.device)
    images = torch.cat([torch.where(box, other, image), torch.where(box, image, other)])
    labels = torch.cat([torch.where(box, pseudo, label), torch.where(box, label, pseudo)])
    outside = torch.where(box, guess_weight, 1.0).expand(label.shape)
    inside = torch.where(box, 1.0, guess_weight).expand(label.shape)
    return images, labels, torch.cat([outside, inside])
