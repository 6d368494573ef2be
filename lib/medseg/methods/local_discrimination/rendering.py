"""Pictures rendered from binary shapes, from which a segmenter learns without labels.

A mask says how vessels or lungs look as shapes and nothing of their grey values. What is dark and as thick as they are
is taken out of a real picture by a morphological closing, which leaves everything else where it is: the rim of the
field of view, the optic disc, the outline of the body. Then a shape is drawn into it about as dark as what was taken
out. Some pictures are random textures with random contrasts, so that a network does not rely on either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

FAINTEST = 0.1  # ours: least depth of a shape, in standard deviations of the picture: one without any still teaches
REAL = 0.75  # ours: share of rendered pictures that have a real ground


@dataclass(frozen=True)
class Ground:
    """A real picture, or a crop of it, without what could be the shape.

    Attributes:
        image: (C, *grid) the picture after closing.
        detail: (C, *grid) its texture finer than the shape.
        depth: (C,) how far what was taken out lies below its surroundings, in the picture's units.
    """

    image: torch.Tensor
    detail: torch.Tensor
    depth: torch.Tensor


def take_out(image: torch.Tensor, inside: torch.Tensor, thickness: float, share: float, polarity: str) -> Ground:
    """A picture without what is as dark (or bright) and as thick as the shapes.

    Args:
        image: (C, *grid).
        inside: (*grid) bool, where the picture is not empty.
        thickness: of the shapes, voxels.
        share: of a picture that the shapes take; so much of what was taken out tells its depth.
        polarity: "dark", "bright" or "any"; the last blurs, for a closing would keep what is bright.
    """
    size = 2 * math.ceil(0.5 * thickness) + 1
    if polarity == "any":
        plain = blur(image, thickness)
    else:
        sign = 1.0 if polarity == "dark" else -1.0
        plain = sign * _close(sign * image, size)
    plain = blur(plain, 0.5)  # softens the blocks of the closing, and no more: a rim stays sharp
    taken = (plain - image).abs()[:, inside]
    count = min(max(1, round(share * inside.numel())), taken.shape[1])
    depth = taken.topk(count, dim=1).values.mean(dim=1)
    depth = torch.maximum(depth, FAINTEST * image[:, inside].std(dim=1, correction=0))
    detail = image - blur(image, max(0.7, thickness / 12))
    usual = _spread(4 * detail[:, inside].abs().median(dim=1).values, image)
    return Ground(plain, torch.maximum(torch.minimum(detail, usual), -usual), depth)


def render_shape(mask: torch.Tensor, ground: Ground, polarity: str, rng: torch.Generator) -> torch.Tensor:
    """A picture (C, *patch) of a shape.

    Args:
        mask: (1, *patch) 0 or 1.
        ground: a crop of a real picture without the shape.
        polarity: "dark", "bright" or "any": how the shape differs from what surrounds it.
        rng: source of all randomness.
    """
    sign = {"dark": -1.0, "bright": 1.0}.get(polarity) or (1.0 if _chance(rng) < 0.5 else -1.0)
    soft = blur(mask, 0.4 + 0.8 * _chance(rng))
    uneven = (1 + 0.4 * _texture(mask.shape, (4, 8), rng)).clamp_min(0.2)
    draw = _on_picture if _chance(rng) < REAL else _on_texture
    return draw(sign * uneven * soft, ground, rng)


def _on_picture(shape: torch.Tensor, ground: Ground, rng: torch.Generator) -> torch.Tensor:
    """Over the real ground, in its own units: windows of a whole image are not normalised one by one either."""
    contrast = (0.3 + 1.7 * _chance(rng)) * ground.depth * _per_channel(ground.image, rng)
    specks = blur(torch.randn(ground.image.shape, generator=rng), 0.5 + 1.5 * _chance(rng))
    specks = specks / specks.std().clamp_min(1e-6) * 0.25 * _chance(rng) * _spread(ground.depth, specks)
    return ground.image + (0.5 + _chance(rng)) * ground.detail + specks + _spread(contrast, shape) * shape


def _on_texture(shape: torch.Tensor, ground: Ground, rng: torch.Generator) -> torch.Tensor:
    """Over random clouds, about as bright as a whole picture."""
    size = ground.image.shape
    contrast = (0.3 + 1.7 * _chance(rng)) * _per_channel(ground.image, rng)
    picture = _texture(size, (3, 5, 9), rng) + 0.3 * _texture(size, (12, 24), rng) + _spread(contrast, shape) * shape
    picture = blur(picture + 0.3 * _chance(rng) * torch.randn(size, generator=rng), 0.3 + 0.7 * _chance(rng))
    dims = tuple(range(1, picture.ndim))
    deviation = picture.std(dim=dims, keepdim=True).clamp_min(1e-3)
    return (picture - picture.mean(dim=dims, keepdim=True)) / deviation


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian filter of (C, *grid), the border repeated; sigma in voxels."""
    radius = max(1, math.ceil(2.5 * sigma))
    places = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    axes = image.ndim - 1
    found = image[:, None]
    convolve = F.conv3d if axes == 3 else F.conv2d
    for axis in range(axes):
        shape = [1] * axes
        shape[axis] = len(kernel)
        pads = [side for other in reversed(range(axes)) for side in ((radius, radius) if other == axis else (0, 0))]
        found = convolve(F.pad(found, pads, mode="replicate"), kernel.reshape(1, 1, *shape))
    return found[:, 0]


def _close(image: torch.Tensor, size: int) -> torch.Tensor:
    """Closing by a cube; the outside counts as dark, so that what is dark and touches the border stays."""
    axes = image.ndim - 1
    padded = F.pad(image, (size, size) * axes, value=float(image.min()))
    closed = -_largest(-_largest(padded, size), size)
    return closed[(slice(None), *(slice(size, -size),) * axes)]


def _largest(image: torch.Tensor, size: int) -> torch.Tensor:
    """Maximum in a cube of odd side around every voxel of (C, *grid), axis by axis."""
    axes = image.ndim - 1
    pool = F.max_pool3d if axes == 3 else F.max_pool2d
    for axis in range(axes):
        kernel = [size if other == axis else 1 for other in range(axes)]
        image = pool(image[None], kernel, stride=1, padding=[k // 2 for k in kernel])[0]
    return image


def _texture(shape: Sequence[int], sizes: Sequence[int], rng: torch.Generator) -> torch.Tensor:
    """Sum of smooth random fields (C, *grid) of several grain sizes, about unit spread."""
    axes = len(shape) - 1
    mode = "trilinear" if axes == 3 else "bilinear"
    total = torch.zeros(tuple(shape))
    for size in sizes:
        coarse = torch.randn(1, shape[0], *(size,) * axes, generator=rng)
        total += F.interpolate(coarse, size=tuple(shape[1:]), mode=mode, align_corners=True)[0]
    return total / len(sizes) ** 0.5


def _per_channel(image: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """How much each channel shows of a contrast, (C,)."""
    return 0.7 + 0.6 * torch.rand(image.shape[0], generator=rng)


def _spread(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _chance(rng: torch.Generator) -> float:
    return float(torch.rand(1, generator=rng))
