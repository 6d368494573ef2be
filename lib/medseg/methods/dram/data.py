"""From a case to tensors: windowed image, regions, extents, and the lesion mask where it may be learnt from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from torch.nn.functional import interpolate

from medseg.cases import Case
from medseg.errors import UnusableInputError
from medseg.losses.rank_pseudo import IGNORE
from medseg.methods.base import Sample
from medseg.methods.dram.config import DRAMConfig
from medseg.methods.dram.extents import (
    SLOTS,
    ExtentRule,
    Extents,
    extents_of_mask,
    extents_of_weak,
    measured_percent,
    parse_table,
)
from medseg.transforms.grid import resize, same_grid, size_at, spacing_of, to_canonical, to_grid
from medseg.transforms.io import read_image, read_mask
from medseg.transforms.labels import read_label
from medseg.transforms.regions import lungs_of_hu, name_regions

log = logging.getLogger(__name__)

LESION_NAMES = ("infection", "lesion", "opacity", "consolidation", "ggo", "emphysema", "disease")
HU = (-1000.0, 200.0)  # dRAM card sec. 7
EIGHT_BIT = (0.0, 255.0)  # dRAM card sec. 2
MOST_VOXELS = 600_000  # ours: a step on two CPU cores stays near a second


@dataclass(frozen=True)
class CaseFacts:
    """What is known of a case's regions, on its image's own grid in RAS.

    Attributes:
        regions: (1, *grid) uint8; None where nothing tells where the lungs are.
        names: region ids with their names.
        lesion: (1, *grid) uint8, the true lesion; None without a mask.
    """

    regions: MetaTensor | None
    names: Mapping[int, str]
    lesion: MetaTensor | None


def lesion_label(labels: Mapping[str, int], chosen: str = "") -> int:
    """The number of the label that is disease.

    Raises:
        UnusableInputError: the chosen name is no label.
    """
    if chosen:
        if chosen not in labels:
            raise UnusableInputError(f"lesion = {chosen!r} is no label; the labels are {', '.join(labels)}")
        return labels[chosen]
    known = [index for name, index in labels.items() if name.casefold() in LESION_NAMES]
    return known[0] if known else max(labels.values())


def lung_label(labels: Mapping[str, int], chosen: str = "") -> int | None:
    """The number of the label that is healthy lung; where there is one, all labels together are the lungs.

    One that is called so, else the first beside the lesion where no name tells anything. Masks of ground glass and
    consolidation alone are lesions side by side: nothing in them tells where the lungs end.
    """
    lesion = lesion_label(labels, chosen)
    others = {name.casefold(): index for name, index in labels.items() if index != lesion}
    named = [index for name, index in others.items() if "lung" in name or "lobe" in name]
    if named or any(name.casefold() in LESION_NAMES for name in labels):
        return named[0] if named else None
    return min(others.values(), default=None)


def is_hu(config: DRAMConfig) -> bool:
    """Whether images are CT in Hounsfield units, by their window."""
    return config.window is not None and config.window[0] < -200


def says_extents(case: Case) -> bool:
    """Whether a reader stated extents or scores."""
    return case.weak is not None and bool(case.weak.extent or case.weak.scores)


def guess_window(image: MetaTensor) -> tuple[float, float]:
    """The window of a data set, from its first image: HU, 8 bits, or its own range."""
    low, high = float(image.min()), float(image.max())
    if low < -200:
        return HU
    return EIGHT_BIT if high <= 255 else (low, high if high > low else low + 1)


def windowed(image: MetaTensor, window: tuple[float, ...] | None = None) -> MetaTensor:
    """Intensities in [0, 1] from the lower to the upper end of a window; None: see `guess_window`."""
    low, high = window or guess_window(image)
    return MetaTensor(((image.as_tensor().float() - low) / (high - low)).clamp(0, 1), affine=image.affine)


def rule_of(config: DRAMConfig) -> ExtentRule:
    """The configured reading of extents."""
    return ExtentRule(parse_table(config.score_table), config.tolerance)


def working_size(image: MetaTensor, config: DRAMConfig) -> tuple[int, ...]:
    """Voxels of the network's grid: `spacing` where it is set; `scale` applies in the plane only."""
    own = spacing_of(image)
    spacing = config.spacing or own
    scale = config.scale or 1.0
    return size_at(image, (spacing[0] / scale, spacing[1] / scale, spacing[2]))


def automatic_scale(image: MetaTensor, config: DRAMConfig) -> float:
    """1, 1/2 or 1/4: the first at which a volume has at most `MOST_VOXELS`."""
    whole = float(np.prod(size_at(image, config.spacing or spacing_of(image))))
    return next((s for s in (1.0, 0.5) if whole * s**2 <= MOST_VOXELS), 0.25)


def load_case(case: Case, config: DRAMConfig, labels: Mapping[str, int]) -> Sample:
    """Read a case onto the network's grid.

    The mask's voxels enter `label` only with `masks` = "voxels"; else nothing of them stays but one number per region.

    Returns:
        `image` (1, *grid) in [0, 1]; where it is known `regions` (1, *grid) uint8, `extents` (3, SLOTS) and `label`
        (1, *grid) uint8, 1 lesion; `counts` (SLOTS,) voxels per region; `names`, `case`, `source`.

    Raises:
        UnusableInputError: no 3D volume of one channel, a mask with unknown values, regions that do not fit; a mask or
            extents, but nothing that tells the lungs they are shares of.
    """
    original = read_image(case.image)
    if original.ndim != 4 or original.shape[0] != 1:
        shape = "x".join(map(str, original.shape[1:]))
        raise UnusableInputError(
            f"image {case.id} is {shape} with {original.shape[0]} channels; dRAM needs a CT volume"
        )
    image = to_canonical(original)
    facts = read_facts(case, image, original, config, labels)
    if facts.regions is None:
        _refuse_labels(case, config)
    extents = read_extents(case, facts, config)
    size = working_size(image, config)
    tensors = {"image": _averaged(windowed(image, config.window), size)}
    if facts.regions is not None:
        tensors["regions"] = resize(facts.regions, size, mode="label")
    if facts.lesion is not None and config.masks == "voxels":
        tensors["label"] = resize(facts.lesion, size, mode="label")
    if facts.regions is not None:
        tensors = _lung_box(tensors, config.margin)
    loaded: Sample = {**tensors, "case": case.id, "names": dict(facts.names), "source": extents.source}
    if "regions" in loaded:
        counts = torch.bincount(loaded["regions"].as_tensor().flatten().long(), minlength=SLOTS)
        extents.weight = torch.where(counts > 0, extents.weight, torch.zeros(SLOTS))  # lost at this resolution
        loaded["counts"] = counts
        loaded["extents"] = extents.stacked()
    return loaded


def read_facts(
    case: Case, image: MetaTensor, original: MetaTensor, config: DRAMConfig, labels: Mapping[str, int]
) -> CaseFacts:
    """Regions and true lesion on the image's grid.

    Regions come from the region mask, else from the mask's own lungs (all labels together, see `lung_label`), else
    from HU.
    """
    lesion = lungs = None
    if case.label is not None:
        mask = to_canonical(read_label(case, original, labels))
        lesion = MetaTensor(
            (mask.as_tensor() == lesion_label(labels, config.lesion)).to(torch.uint8), affine=mask.affine
        )
        lungs = (mask.as_tensor()[0] > 0).numpy() if lung_label(labels, config.lesion) else None
    elif case.organ is not None:
        shown = _own_grid(read_mask(case.organ), original, f"organ mask of {case.id}")
        lungs = (shown.as_tensor()[0] > 0).numpy()
    given = None
    if case.regions is not None:
        given = _own_grid(read_mask(case.regions), original, f"region mask of {case.id}").as_tensor()[0].numpy()
        if not given.any():
            raise UnusableInputError(f"region mask of {case.id} is empty; draw the lungs or remove the file")
        if given.max() >= SLOTS:
            raise UnusableInputError(f"region mask of {case.id} holds id {given.max()}; ids go up to {SLOTS - 1}")
    if given is None and lungs is None and is_hu(config):
        lungs = lungs_of_hu(image.as_tensor()[0].numpy())
    regions = given if given is not None else lungs
    if regions is None or not regions.any():
        return CaseFacts(None, {}, lesion)
    regions, names = name_regions(regions, config.regions)
    return CaseFacts(MetaTensor(torch.from_numpy(regions)[None], affine=image.affine), names, lesion)


def _refuse_labels(case: Case, config: DRAMConfig) -> None:
    """End with what is missing, where a case says something of the lesion and nothing tells the lungs."""
    what = "a mask without lungs" if case.label is not None else "extents" if says_extents(case) else ""
    if what:
        reason = "no lungs are found in its HU" if is_hu(config) else "its lungs cannot be found without HU"
        raise UnusableInputError(
            f"image {case.id} has {what} but no region mask, and {reason}; save a lung or lobe mask under tag regions"
        )


def read_extents(case: Case, facts: CaseFacts, config: DRAMConfig) -> Extents:
    """What is known of the regions' extents: stated ones, else those that follow from the mask.

    Those that were derived from the mask yield to it: it may have been corrected, or other regions asked for, since.
    """
    rule = rule_of(config)
    if facts.regions is None:
        return Extents()
    if case.weak is not None and says_extents(case) and (case.weak.source != "mask" or facts.lesion is None):
        return extents_of_weak(case.weak, facts.names, rule, f"image {case.id}")
    if facts.lesion is None:
        return Extents()
    percent = measured_percent(facts.lesion.as_tensor()[0].numpy().astype(bool), facts.regions.as_tensor()[0].numpy())
    return extents_of_mask(percent, rule, config.extents, config.noise, case.id)


def draw_sample(loaded: Sample, config: DRAMConfig, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Cut to the patch and augment: flips along all axes, transposed planes, contrast.

    Region ids travel with their voxels, so a flip never swaps two regions. A region of which the patch cuts something
    off loses its weight: its percentage no longer holds.
    """
    keys = ("image", "regions", "label", "pseudo")
    tensors = {key: _plain(loaded[key]) for key in keys if key in loaded}
    if config.patch is not None:
        tensors = _cut_or_pad(tensors, config.patch, generator)
    extents = loaded["extents"].clone()
    kept = torch.bincount(tensors["regions"].flatten().long(), minlength=SLOTS)
    extents[2] = torch.where(kept < loaded["counts"], torch.zeros(SLOTS), extents[2])
    tensors = _turned(tensors, config.patch, generator)
    tensors["image"] = _recoloured(tensors["image"], generator)
    return {**{key: value.contiguous() for key, value in tensors.items()}, "extents": extents}


# -- details ---------------------------------------------------------------------------------------------------------


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _averaged(image: MetaTensor, size: tuple[int, ...]) -> MetaTensor:
    """Resampled; where the grid gets coarser, every voxel is the mean of those it covers, so noise does not alias."""
    small = resize(image, size)
    if any(n > o for n, o in zip(size, image.shape[1:], strict=True)):
        return small
    return MetaTensor(interpolate(image.as_tensor()[None], size, mode="area")[0], affine=small.affine)


def _own_grid(mask: MetaTensor, image: MetaTensor, what: str) -> MetaTensor:
    if mask.ndim != image.ndim:
        raise UnusableInputError(f"{what} has {mask.ndim - 1} axes, its image {image.ndim - 1}")
    placed = mask if same_grid(mask, image) else to_grid(mask, image, mode="nearest")
    if bool(mask.any()) and not bool(placed.any()):
        raise UnusableInputError(
            f"{what} lies on another grid that does not meet the image; save it on the image's grid"
        )
    return to_canonical(placed)


def _lung_box(tensors: dict[str, MetaTensor], margin: int) -> dict[str, MetaTensor]:
    """Everything cut to the regions' box and a margin; the affine moves along."""
    inside = tensors["regions"].as_tensor()[0] > 0
    starts, stops = [], []
    for axis, length in enumerate(inside.shape):
        others = tuple(a for a in range(3) if a != axis)
        filled = torch.nonzero(inside.any(dim=others[1]).any(dim=others[0]))[:, 0]
        if not len(filled):
            return tensors
        starts.append(max(int(filled[0]) - margin, 0))
        stops.append(min(int(filled[-1]) + 1 + margin, length))
    window = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))
    step = torch.eye(4, dtype=torch.float64)
    step[:3, 3] = torch.tensor(starts, dtype=torch.float64)
    return {
        key: MetaTensor(value.as_tensor()[(slice(None), *window)].contiguous(), affine=value.affine.double() @ step)
        for key, value in tensors.items()
    }


def _cut_or_pad(
    tensors: dict[str, torch.Tensor], patch: Sequence[int], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """A window of exactly `patch`; smaller volumes are padded, regions and masks with 0, pseudo-labels with ignore."""
    result = dict(tensors)
    grid = tensors["image"].shape[1:]
    missing = [max(p - n, 0) for p, n in zip(patch, grid, strict=True)]
    pads = [side for m in reversed(missing) for side in (0, m)]
    starts = [
        int(torch.randint(max(n - p, 0) + 1, (1,), generator=generator)) for n, p in zip(grid, patch, strict=True)
    ]
    window = (slice(None), *(slice(s, s + p) for s, p in zip(starts, patch, strict=True)))
    for key, value in tensors.items():
        padded = torch.nn.functional.pad(value, pads, value=IGNORE if key == "pseudo" else 0)
        result[key] = padded[window]
    return result


def _turned(
    tensors: dict[str, torch.Tensor], patch: Sequence[int] | None, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    flips = [axis for axis in (1, 2, 3) if float(torch.rand(1, generator=generator)) < 0.5]
    square = patch is None or patch[0] == patch[1]
    transpose = square and float(torch.rand(1, generator=generator)) < 0.5
    result = {}
    for key, value in tensors.items():
        turned = value.flip(flips) if flips else value
        result[key] = turned.transpose(1, 2) if transpose else turned
    return result


def _recoloured(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Ours: gamma in 0.8..1.25, gain within 10 %, noise of up to 0.03: the sets' contrast differs between scanners."""
    gamma, gain, noise = torch.rand(3, generator=generator).tolist()
    changed = image.clamp_min(0) ** (0.8 * (1.25 / 0.8) ** gamma) * (0.9 + 0.2 * gain)
    return (changed + 0.03 * noise * torch.randn(image.shape, generator=generator)).clamp(0, 1.2)
