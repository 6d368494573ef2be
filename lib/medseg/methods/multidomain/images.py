"""From an image as it was acquired to what the network sees: axes, spacing, intensities, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from monai.data import MetaTensor
from torch import nn

from medseg.domains import Domain, window_of
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.crops import crop, fitted_centre
from medseg.methods.multidomain.registry import MULTIPLE, working_spacing
from medseg.methods.patches import normalise
from medseg.transforms.grid import axis_last, resize, size_at, spacing_of, to_canonical


def prepare(image: MetaTensor, domain: Domain, config: MultiDomainConfig) -> MetaTensor:
    """Canonical axes with the slices last, the domain's spacing and intensities; for 2.5D neighbouring slices too.

    Args:
        image: (C, *grid).
        domain: its spacing, slice axis and normalisation count.
        config: settings.

    Returns:
        (C, *grid), for 2.5D (3 C, *grid): the slices, those before and those after.
    """
    turned = to_canonical(image)
    spacing = domain.spacing or working_spacing(turned, spacing_of(turned), config.scale)
    size = size_at(turned, spacing)
    prepared = axis_last(scaled(resize(turned, size), domain), domain.slice_axis)
    if config.view != "2.5d" or config.dimension == 2:
        return prepared
    plain = prepared.as_tensor()
    before = torch.cat([plain[..., :1], plain[..., :-1]], dim=-1)
    after = torch.cat([plain[..., 1:], plain[..., -1:]], dim=-1)
    return MetaTensor(torch.cat([plain, before, after]), affine=prepared.affine)


def scaled(image: MetaTensor, domain: Domain) -> MetaTensor:
    """Intensities as the domain states: z-score of the whole image, or its window as [-1, 1], cut at both ends."""
    window = window_of(domain.normalisation)
    if window is None:
        return normalise(image)
    low, high = window
    plain = image.as_tensor().float().clamp(low, high)
    return MetaTensor(2 * (plain - low) / (high - low) - 1, affine=image.affine)


def cut_views(image: MetaTensor, patch: Sequence[int], count: int) -> torch.Tensor:
    """Pieces (V, C, *patch) from the middle of an image (C, *grid): `count` slices of a volume, or one patch."""
    plain = image.as_tensor()
    if len(patch) == 2 and plain.ndim == 4:
        depth = plain.shape[-1]
        picks = torch.linspace(0.2 * (depth - 1), 0.8 * (depth - 1), count).round().long().tolist()
        pieces = [plain[..., index] for index in picks]
    else:
        pieces = [plain]
    grid = pieces[0].shape[1:]
    centre = fitted_centre([n / 2 for n in grid], patch, grid)
    return torch.stack([crop({"image": piece}, centre, patch)["image"] for piece in pieces])


def pad_slices(slices: torch.Tensor) -> torch.Tensor:
    """Zeros at the far ends, so that (B, C, H, W) has lengths the network can halve."""
    missing = [-n % MULTIPLE for n in slices.shape[-2:]]
    return nn.functional.pad(slices, [0, missing[1], 0, missing[0]])


def with_names(domain: Domain, numbers: Mapping[int, str]) -> Domain:
    """The domain with names for the labels that its cases give as bare numbers.

    Args:
        domain: of a registry.
        numbers: number of the run -> label name. A bare number that is none of them is left out; whoever loads the
            case refuses it.
    """

    def name(label: str) -> str | None:
        bare = label.isdigit() and label not in numbers.values()
        return numbers.get(int(label)) if bare else label

    labels = tuple(known for label in domain.labels if (known := name(label)))
    values = {value: known for value, label in domain.values.items() if (known := name(label))}
    return replace(domain, labels=labels, values=values)


def fitted_patch(config: MultiDomainConfig) -> tuple[int, ...]:
    """The patch with as many lengths as the network has axes."""
    axes = config.net_axes
    if len(config.patch) < axes:
        return (*config.patch, *(config.patch[-1],) * (axes - len(config.patch)))
    return config.patch[:axes]
