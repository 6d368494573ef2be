"""Attention regularisation between activation maps of a regressor: the image's follow the mask's."""

from __future__ import annotations

import torch


def normalise_maps(maps: torch.Tensor) -> torch.Tensor:
    """Magnitude of each activation map divided by its largest value: (B, K, h, w) in [0, 1].

    Signed weights carry meaning, so it is the magnitude that says where the regressor looks. A map of zeros stays zero.

    Source: Seg4Reg card sec. 6, N(A).
    """
    size = maps.abs()
    return size / size.amax(dim=(2, 3), keepdim=True).clamp_min(1e-6)


def attention_loss(image_maps: torch.Tensor, mask_maps: torch.Tensor) -> torch.Tensor:
    """Mean over maps, cells and images of |N(A of the image) - N(A of the mask)|; the mask's side gets no gradient.

    Args:
        image_maps: (B, K, h, w).
        mask_maps: (B, K, h, w), of the same images' masks.

    Raises:
        ValueError: the shapes differ.

    Source: Seg4Reg card sec. 6, L_AR.
    """
    if image_maps.shape != mask_maps.shape:
        raise ValueError(f"maps of shapes {tuple(image_maps.shape)} and {tuple(mask_maps.shape)} cannot be compared")
    return (normalise_maps(image_maps) - normalise_maps(mask_maps).detach()).abs().mean()
