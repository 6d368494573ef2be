"""What the domain classifier sees of an image: the same views in training and in use, whatever domain it belongs to."""

from __future__ import annotations

import torch
from monai.data import MetaTensor
from torch.nn import functional as F

from medseg.methods.multidomain.crops import SIZE, TURN, change_intensity, crop
from medseg.methods.multidomain.registry import slice_axis
from medseg.methods.patches import normalise
from medseg.transforms.grid import axis_last, spacing_of, to_canonical

COUNT = 9  # ours: slices by which the domain of a volume is told
SIDE = 64  # ours: pixels of a view along each axis
SHIFT = 0.1  # ours: how far views are moved at most, share of a side


def whole_views(image: MetaTensor) -> torch.Tensor:
    """Whole slices of an image as it was acquired, or the whole picture: (V, C, SIDE, SIDE).

    Nothing here depends on a domain: no patch, whose border would name it, and no working spacing, which nobody knows
    before the domain is known.

    Args:
        image: (C, *grid).
    """
    turned = to_canonical(image)
    plain = normalise(turned)
    if plain.ndim == 4:
        plain = axis_last(plain, slice_axis(spacing_of(turned)))
        depth = plain.shape[-1]
        picks = torch.linspace(0.2 * (depth - 1), 0.8 * (depth - 1), COUNT).round().long()
        pieces = plain.as_tensor()[..., picks].movedim(-1, 0)
    else:
        pieces = plain.as_tensor()[None]
    return F.interpolate(pieces, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)


def draw_view(views: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One view (C, SIDE, SIDE) of several, varied."""
    number = int(torch.randint(len(views), (1,), generator=generator))
    return vary(views[number : number + 1], generator)[0]


def vary(views: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Views (V, C, SIDE, SIDE) as another patient's might be: all moved, turned, sized and recoloured alike."""
    turn, size, *move = (2 * torch.rand(4, generator=generator) - 1).tolist()
    centre = [(SIDE - 1) / 2 + SHIFT * SIDE * share for share in move]
    flat = views.flatten(0, 1)
    turned = crop({"image": flat}, centre, (SIDE, SIDE), turn * TURN, 1 + size * SIZE)["image"]
    return change_intensity(turned, generator).reshape(views.shape)
