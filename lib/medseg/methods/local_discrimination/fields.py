"""Where an image is not empty background."""

from __future__ import annotations

import torch
from monai.data import MetaTensor


def body(image: MetaTensor) -> torch.Tensor:
    """What is not empty background: (*grid) bool; everything where that would leave nothing.

    Above a twentieth of the range, in any channel: outside of a field of view or a body images are black.
    """
    brightest = image.as_tensor().float().amax(dim=0)
    low, high = brightest.amin(), brightest.flatten()[:: max(1, brightest.numel() // 100000)].quantile(0.99)
    inside = brightest > low + 0.05 * (high - low)
    return inside if bool(inside.any()) else torch.ones_like(inside)
