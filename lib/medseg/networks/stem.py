"""The first convolution of a network for another number of image channels."""

from __future__ import annotations

import torch


def fit_channels(source: torch.Tensor, value: torch.Tensor) -> torch.Tensor | None:
    """A first convolution for grey images from one for colour (summed), or the reverse (shared among the channels).

    Args:
        source: weights (O, I, *kernel).
        value: weights of the wanted shape (O, J, *kernel).

    Returns:
        Weights of the wanted shape; None where they differ by more than the channels of the image.
    """
    is_convolution = source.ndim == value.ndim >= 4 and source.shape[:1] + source.shape[2:] == (
        value.shape[:1] + value.shape[2:]
    )
    if not is_convolution or 1 not in (source.shape[1], value.shape[1]):
        return None
    channels = value.shape[1]
    return source.sum(dim=1, keepdim=True) if channels == 1 else source.expand_as(value) / channels
