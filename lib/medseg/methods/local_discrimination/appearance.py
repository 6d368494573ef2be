"""Random appearance of a view: contrast, gamma, a smooth bias, noise, blur; for colour also hue and greyness."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def vary_appearance(view: torch.Tensor, strength: float, rng: torch.Generator, colour: bool) -> torch.Tensor:
    """Change intensities and keep places.

    Ours, in place of the colour jitter of the card sec. 6, so that it serves grey images, volumes and colour alike.

    Args:
        view: (C, *patch); what is added is measured by its own spread.
        strength: 0 changes nothing, 1 is the default.
        rng: source of all randomness.
        colour: the channels are colours, which may shift against each other or turn grey.
    """
    if strength <= 0:
        return view
    axes = view.ndim - 1
    spread = view.std().clamp(1e-3, 1.0)  # vessels inside a field of view differ by little of the image's own spread
    shared, own = _spread(rng, 1), _spread(rng, view.shape[0]) * (0.5 if colour else 0.0)
    contrast = torch.exp(0.35 * strength * (shared + own)).reshape(-1, *(1,) * axes)
    offset = 0.35 * strength * (_spread(rng, 1) + _spread(rng, view.shape[0]) * (0.5 if colour else 0.0))
    if colour and float(torch.rand(1, generator=rng)) < 0.2 * strength:
        view = view.mean(dim=0, keepdim=True).expand_as(view)
    view = _gamma(view, torch.exp(0.35 * strength * _spread(rng, 1)))
    centre = view.mean()
    view = (view - centre) * contrast + centre + spread * offset.reshape(-1, *(1,) * axes)
    view = view + 0.3 * strength * spread * _bias(view.shape[1:], rng)
    if float(torch.rand(1, generator=rng)) < 0.3 * strength:
        wide = F.pad(view[None], (1, 1) * axes, mode="replicate")[0]
        view = F.avg_pool3d(wide, 3, 1) if axes == 3 else F.avg_pool2d(wide, 3, 1)
    noise = 0.15 * strength * float(torch.rand(1, generator=rng))
    return view + noise * spread * torch.randn(view.shape, generator=rng)


def _gamma(view: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """Gamma on the range of the view, which stays the same."""
    low, high = view.amin(), view.amax()
    width = (high - low).clamp_min(1e-6)
    return ((view - low) / width).clamp(0, 1) ** power * width + low


def _bias(grid: torch.Size, rng: torch.Generator) -> torch.Tensor:
    """A smooth random field of unit size: (1, *grid)."""
    axes = len(grid)
    coarse = torch.randn(1, 1, *(3,) * axes, generator=rng)
    mode = "trilinear" if axes == 3 else "bilinear"
    return F.interpolate(coarse, size=tuple(grid), mode=mode, align_corners=True)[0]


def _spread(rng: torch.Generator, count: int) -> torch.Tensor:
    return torch.rand(count, generator=rng) * 2 - 1
