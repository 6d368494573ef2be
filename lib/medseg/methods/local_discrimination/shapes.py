"""Shape prior: pictures rendered from binary masks of any source, from which a segmenter learns without labels.

A mask says how vessels or lungs look as shapes and nothing of their grey values. Random grey values, textures and
contrasts are put inside and outside of it, half of the time over a blurred real image, so that what a network can rely
on is the shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from medseg.cases import IMAGE_SUFFIXES, image_suffix
from medseg.errors import MedsegError, NotFoundError
from medseg.transforms.grid import resize, to_canonical
from medseg.transforms.io import read_mask

Masks = Sequence[torch.Tensor]


def read_shapes(folder: Path, scale: float, dimension: int) -> list[torch.Tensor]:
    """Binary masks of a folder, each (1, *grid) float, resampled by `scale`. Any value above 0 is shape.

    Raises:
        NotFoundError: no such folder, or it holds no mask.
        MedsegError: a mask has other axes than the images, or is empty.
    """
    files = sorted(path for path in folder.iterdir() if image_suffix(path)) if folder.is_dir() else []
    if not files:
        raise NotFoundError(
            f"shapes = {folder} holds no mask; give a folder of binary masks ({', '.join(IMAGE_SUFFIXES)})"
        )
    found = []
    for file in files:
        mask = to_canonical(read_mask(file))
        if mask.ndim - 1 != dimension:
            raise MedsegError(f"shape {file.name} has {mask.ndim - 1} axes, the images have {dimension}")
        if not bool((mask > 0).any()):
            raise MedsegError(f"shape {file.name} is empty; remove it from {folder}")
        size = [max(1, round(n * scale)) for n in mask.shape[1:]]
        binary = mask.clone()
        binary[binary > 0] = 1
        found.append(resize(binary, size, mode="label").as_tensor().float())
    return found


def render_shape(
    mask: torch.Tensor, background: torch.Tensor, polarity: str, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture of a shape.

    Args:
        mask: (1, *patch) 0 or 1.
        background: (C, *patch) a view of a real image, about unit spread; blurred here until no fine shape is left.
        polarity: "dark", "bright" or "any": how the shape differs from what surrounds it.
        rng: source of all randomness.

    Returns:
        Picture (C, *patch) of about unit spread and mask (1, *patch).
    """
    channels, axes = background.shape[0], mask.ndim - 1
    if float(torch.rand(1, generator=rng)) < 0.5:
        ground = blur(background, 6.0)
    else:
        ground = _texture((channels, *mask.shape[1:]), (3, 5, 9), rng)
    ground = ground + 0.3 * _texture((channels, *mask.shape[1:]), (12, 24), rng)
    sign = {"dark": -1.0, "bright": 1.0}.get(polarity) or (1.0 if float(torch.rand(1, generator=rng)) < 0.5 else -1.0)
    contrast = sign * (0.3 + 1.7 * torch.rand(channels, generator=rng)).reshape(-1, *(1,) * axes)
    soft = blur(mask, 0.4 + 1.2 * float(torch.rand(1, generator=rng)))
    uneven = (1 + 0.4 * _texture((1, *mask.shape[1:]), (4, 8), rng)).clamp_min(0.2)
    picture = ground + contrast * uneven * soft
    picture = picture + 0.3 * float(torch.rand(1, generator=rng)) * torch.randn(picture.shape, generator=rng)
    picture = blur(picture, 0.3 + 0.7 * float(torch.rand(1, generator=rng)))
    dims = tuple(range(1, picture.ndim))
    spread = picture.std(dim=dims, keepdim=True).clamp_min(1e-3)
    return (picture - picture.mean(dim=dims, keepdim=True)) / spread, mask


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


def _texture(shape: Sequence[int], sizes: Sequence[int], rng: torch.Generator) -> torch.Tensor:
    """Sum of smooth random fields of several grain sizes, about unit spread."""
    axes = len(shape) - 1
    mode = "trilinear" if axes == 3 else "bilinear"
    total = torch.zeros(tuple(shape))
    for size in sizes:
        coarse = torch.randn(1, shape[0], *(size,) * axes, generator=rng)
        total += F.interpolate(coarse, size=tuple(shape[1:]), mode=mode, align_corners=True)[0]
    return total / len(sizes) ** 0.5
