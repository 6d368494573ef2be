"""From a radiograph as it comes to what the networks see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import GaussianSmooth

from medseg.transforms.grid import resize, spacing_of

CHANNELS = 2
NEIGHBOURHOOD = 1 / 24
"""Width of the local contrast's window as a share of the height: about two vertebrae."""


def working_copy(image: MetaTensor, height: int) -> MetaTensor:
    """Grey values with square pixels at a height.

    Args:
        image: (C, x, y); colours are averaged, pixels may be anisotropic.
        height: rows of the result; the width keeps the picture's physical aspect.

    Returns:
        (1, x', height) with affine.
    """
    sx, sy = spacing_of(image)
    pixel = image.shape[2] * sy / height
    width = max(1, round(image.shape[1] * sx / pixel))
    grey = MetaTensor(image.as_tensor().float().mean(dim=0, keepdim=True), affine=image.affine)
    return resize(grey, (width, height))


def contrast_channels(grey: MetaTensor) -> MetaTensor:
    """Two views of a grey picture (1, x, y): its global and its local contrast, both about mean 0 and spread 1.

    Grey values are cut at the 0.5th and 99.5th percentile, so that letters and metal do not decide the scale. Local
    contrast divides by the spread of the neighbourhood, as CLAHE does for the 2019 regressor (Seg4Reg card sec. 6).
    """
    plain = grey.as_tensor().float()
    low, high = torch.quantile(_thin(plain), torch.tensor([0.005, 0.995])).tolist()
    plain = plain.clamp(low, high if high > low else low + 1)
    whole = (plain - plain.mean()) / plain.std().clamp_min(1e-6)
    smooth = GaussianSmooth(sigma=NEIGHBOURHOOD * grey.shape[2] / 2)
    detail = whole - _plain(smooth(whole))
    spread = _plain(smooth(detail**2)).clamp_min(0).sqrt()
    local = (detail / (spread + 0.1)).clamp(-4, 4)
    return MetaTensor(torch.cat([whole, local]), affine=grey.affine)


def centred(tensor: torch.Tensor, size: tuple[int, int], middle: float | None = None) -> tuple[torch.Tensor, int]:
    """Pad with zeros or crop the first axis of (C, x, y) to `size[0]`, and the second at its end.

    Args:
        tensor: (C, x, y).
        size: wanted (x, y).
        middle: x that a crop centres on, as far as the border allows; None: the middle.

    Returns:
        (C, *size), and the index in it of the tensor's first column (negative after a crop).
    """
    width, missing = tensor.shape[1], size[0] - tensor.shape[1]
    if missing >= 0:
        before = missing // 2
        tensor = F.pad(tensor, (0, max(size[1] - tensor.shape[2], 0), before, missing - before))
        return tensor[..., : size[1]], before
    start = round((width / 2 if middle is None else middle) - size[0] / 2)
    start = min(max(start, 0), width - size[0])
    return centred(tensor[:, start : start + size[0]], size)[0], -start


def _plain(values: torch.Tensor) -> torch.Tensor:
    """Without the affine that MONAI's transforms attach."""
    return values.as_tensor() if isinstance(values, MetaTensor) else values


def _thin(values: torch.Tensor) -> torch.Tensor:
    """At most some 100,000 of the values, evenly spread: percentiles need no more."""
    flat = values.flatten()
    return flat[:: max(1, len(flat) // 100_000)]
