"""What patch-based segmentation methods share, in 2D and 3D: loading, cropping, augmentation, sliding window.

A method adds its network, its streams and its training step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotate90d,
    RandScaleIntensityd,
    Transform,
)

from medseg.cases import Case
from medseg.errors import MedsegError, UnusableInputError
from medseg.methods import checks
from medseg.methods.base import Method, MethodConfig, Prediction, Sample
from medseg.transforms.components import largest_component
from medseg.transforms.grid import resize, size_at, spacing_of, to_canonical
from medseg.transforms.io import read_image, read_mask
from medseg.transforms.labels import read_label

log = logging.getLogger(__name__)

AUGMENTATIONS = ("none", "flips", "contrast", "strong")
SCHEDULES = ("constant", "poly", "cosine")
ENOUGH, LOOKED_AT = 4, 20  # ours: least and most masks that tell whether labels are in one piece
WHOLE = 0.99  # ours: share of a label's voxels in its largest piece; annotators leave specks


@dataclass(frozen=True)
class PatchConfig(MethodConfig):
    """Settings of patch-based methods. Lengths are in voxels of the network's grid."""

    dimension: int = 0  # 2 or 3; 0: taken from the first image
    channels: int = 0  # image channels; 0: taken from the first image
    spacing: tuple[float, ...] | None = None  # working voxel size, mm (px for pictures); None: each image's own
    patch: tuple[int, ...] = (112, 112, 80)  # CAML card sec. 5
    labelled_batch: int = 2  # CAML card sec. 5
    foreground_crops: float = 0.5  # ours: share of labelled crops centred on foreground, so small organs are seen
    augmentation: str = "flips"  # CAML card sec. 5: in-plane rotations by 90 degrees and flips, no intensity change
    overlap: float = 0.5  # ours: Gaussian weights at 0.5 cost a fifth of the released stride at equal Dice
    stride: tuple[int, ...] = ()  # step of the windows in voxels instead of `overlap`; CAML card sec. 5: 18, 18, 4
    window_batch: int = 4  # ours: windows per forward pass in inference
    largest_component: bool = False  # CAML card sec. 5: off in the published figures
    one_piece: bool = False  # ours: sets `largest_component` where the labelled masks are in one piece each
    lr_schedule: str = "constant"  # CAML card sec. 5; "poly" and "cosine" decay to 0 at the last iteration

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choices(self, augmentation=AUGMENTATIONS, lr_schedule=SCHEDULES, dimension=(0, 2, 3))
        checks.counts(self, "patch", "stride", "labelled_batch", "window_batch")
        checks.shares(self, "foreground_crops")
        checks.below_one(self, "overlap")
        checks.from_zero(self, "channels")
        if not self.patch:
            raise MedsegError("patch is empty; give one length per axis, for example 112,112,80")
        if self.scale > 4:
            raise MedsegError(f"scale = {self.scale} is outside [0, 4]; 0.5 is half resolution, 0 chooses")
        if self.spacing is not None:
            checks.positive(self, "spacing")

    def window_overlap(self) -> float | tuple[float, ...]:
        """Overlap of the windows as MONAI's sliding window takes it: `int(patch * (1 - overlap))` is its step."""
        if not self.stride:
            return self.overlap
        return tuple(max(0.0, 1 - (s + 0.5) / p) for s, p in zip(self.stride, self.patch, strict=True))


class PatchMethod(Method):
    """Base of methods that segment by patches. `self.network(x)` in eval mode must return logits (B, 1 + N, *patch)."""

    config: PatchConfig

    @classmethod
    def fit_config(cls, config: MethodConfig, cases: Sequence[Case]) -> MethodConfig:
        """Take from the first readable image what the settings leave open: axes, channels, scale; and fit the patch.

        A patch longer than the image is cut to the next multiple of 8; a 2D image gets a square of a 3D patch's size.
        """
        assert isinstance(config, PatchConfig)
        image = to_canonical(first_readable(cases))
        dimension = config.dimension or image.ndim - 1
        if dimension != image.ndim - 1:
            raise MedsegError(f"dimension = {dimension}, but the images have {image.ndim - 1} axes")
        spacing = _working_spacing(config, image)
        scale = config.scale or automatic_scale(math.prod(size_at(image, spacing)), dimension)
        size = size_at(image, [s / scale for s in spacing])
        patch = config.patch
        if len(patch) == 3 and dimension == 2:
            patch = (round(math.prod(patch) ** 0.5 / 16) * 16,) * 2
        if len(patch) != dimension:
            raise MedsegError(f"patch {patch} has {len(patch)} lengths but the images have {dimension} axes")
        patch = tuple(min(p, -(-n // 8) * 8) for p, n in zip(patch, size, strict=True))
        channels = config.channels or image.shape[0]
        if config.stride and len(config.stride) != dimension:
            raise MedsegError(
                f"stride {config.stride} has {len(config.stride)} steps but the images have {dimension} axes"
            )
        fitted = {"dimension": dimension, "channels": channels, "scale": scale, "patch": patch}
        if config.one_piece and not config.largest_component:
            fitted["largest_component"] = in_one_piece(cases)
        return config.with_overrides(fitted)

    @classmethod
    def trunk_image(cls, image: MetaTensor) -> MetaTensor:
        """z-scored, as `load` does."""
        return normalise(image)

    @property
    def dimension(self) -> int:
        """Spatial axes."""
        return self.config.dimension

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return 1 + len(self.labels)

    # -- data ------------------------------------------------------------------------------------------------------

    def load(self, case: Case) -> Sample:
        """Read a case onto the network's grid: RAS, working spacing, z-score over the whole volume (CAML card sec. 5).

        Returns:
            `image` (C, *grid) float32 and, where there is a mask, `label` (1, *grid) uint8; both with affine.

        Raises:
            UnusableInputError: the image has other axes or channels than the method was made for, or its mask has
                values that are no label.
        """
        original = read_image(case.image)
        self._check_image(case, original)
        image = to_canonical(original)
        size = self._working_size(image)
        loaded: Sample = {"image": normalise(resize(image, size))}
        if case.label is not None:
            mask = to_canonical(self._read_label(case, original))
            small = resize(mask, size, mode="label")
            loaded["label"] = MetaTensor(small.as_tensor().to(torch.uint8), affine=small.affine)
        return loaded

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Crop one patch and augment it, image and label alike."""
        tensors: dict[str, torch.Tensor] = {k: loaded[k].as_tensor() for k in ("image", "label") if k in loaded}
        tensors = random_crop(tensors, self.config.patch, self.config.foreground_crops, generator)
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        return augment(tensors, self.config.augmentation, self.dimension, seed)

    # -- inference -------------------------------------------------------------------------------------------------

    def predict(self, loaded: Sample) -> Prediction:
        """Sliding window over the whole volume; class probabilities are averaged, not logits (CAML card sec. 5)."""
        probabilities = self.slide(loaded["image"], lambda windows: torch.softmax(self.network(windows).float(), dim=1))
        return Prediction(
            probabilities=MetaTensor(probabilities, affine=loaded["image"].affine),
            uncertainty=MetaTensor(normalised_entropy(probabilities), affine=loaded["image"].affine),
        )

    def slide(self, image: MetaTensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Apply `function` (B, C, *patch) -> (B, K, *patch) over all windows of an image (C, *grid).

        Returns:
            (K, *grid) float32 on the CPU: Gaussian-weighted mean over overlapping windows.
        """
        device = next(self.network.parameters()).device
        inferer = SlidingWindowInferer(
            roi_size=self.config.patch,
            sw_batch_size=self.config.window_batch,
            overlap=self.config.window_overlap(),
            mode="gaussian",
            device=device,
        )
        batch = image.as_tensor()[None].to(device)
        return inferer(batch, function)[0].float().cpu()

    def finish(self, prediction: Prediction, case: Case) -> Prediction:
        """Keep the largest component of every label, where the config asks for it."""
        if self.config.largest_component and prediction.mask is not None:
            mask = prediction.mask.as_tensor().numpy(force=True)
            kept = np.zeros_like(mask)
            for value in self.labels.values():
                kept[0][largest_component(mask[0] == value)] = value
            prediction.mask = MetaTensor(torch.from_numpy(kept), affine=prediction.mask.affine)
        return prediction

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Constant, polynomial (power 0.9) or cosine decay over the run's iterations."""
        total = self.config.iterations
        rules: dict[str, Callable[[int], float]] = {
            "constant": lambda _: 1.0,
            "poly": lambda t: (1 - min(t, total) / total) ** 0.9,
            "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * min(t, total) / total)),
        }
        return torch.optim.lr_scheduler.LambdaLR(optimizer, rules[self.config.lr_schedule])

    # -- details ---------------------------------------------------------------------------------------------------

    def _check_image(self, case: Case, image: MetaTensor) -> None:
        if image.ndim - 1 != self.dimension:
            raise UnusableInputError(
                f"image {case.id} has {image.ndim - 1} axes, but this model was made for {self.dimension}D images"
            )
        if image.shape[0] != self.config.channels:
            raise UnusableInputError(
                f"image {case.id} has {image.shape[0]} channels, but this model was made for {self.config.channels}"
            )

    def _working_size(self, image: MetaTensor) -> tuple[int, ...]:
        return size_at(image, [s / self.config.scale for s in _working_spacing(self.config, image)])

    def _read_label(self, case: Case, image: MetaTensor) -> MetaTensor:
        return read_label(case, image, self.labels)


def normalise(image: MetaTensor) -> MetaTensor:
    """z-score of every channel over the whole image; a constant channel becomes zeros."""
    plain = image.as_tensor().float()
    axes = tuple(range(1, plain.ndim))
    spread = plain.std(dim=axes, keepdim=True, unbiased=False).clamp_min(1e-6)
    return MetaTensor((plain - plain.mean(dim=axes, keepdim=True)) / spread, affine=image.affine)


def normalised_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy of (K, *grid) class probabilities divided by ln K: (1, *grid) in [0, 1]."""
    entropy = -(probabilities * probabilities.clamp_min(1e-8).log()).sum(dim=0, keepdim=True)
    return (entropy / math.log(probabilities.shape[0])).clamp(0, 1)


def random_crop(
    tensors: dict[str, torch.Tensor], patch: Sequence[int], foreground: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The same random patch from all tensors (C, *grid); smaller grids are padded with zeros at both ends.

    With probability `foreground` the patch is centred, as far as the border allows, on a random voxel of the label.
    """
    tensors = {key: _pad(value, patch) for key, value in tensors.items()}
    grid = next(iter(tensors.values())).shape[1:]
    starts = [int(torch.randint(n - p + 1, (1,), generator=generator)) for n, p in zip(grid, patch, strict=True)]
    if "label" in tensors and float(torch.rand(1, generator=generator)) < foreground:
        voxels = torch.nonzero(tensors["label"][0])
        if len(voxels):
            centre = voxels[int(torch.randint(len(voxels), (1,), generator=generator))].tolist()
            starts = [min(max(c - p // 2, 0), n - p) for c, p, n in zip(centre, patch, grid, strict=True)]
    window = (slice(None), *(slice(s, s + p) for s, p in zip(starts, patch, strict=True)))
    return {key: value[window] for key, value in tensors.items()}


def augment(tensors: dict[str, torch.Tensor], kind: str, dimension: int, seed: int) -> dict[str, torch.Tensor]:
    """Random flips and quarter turns in the plane; "contrast" adds other contrasts, "strong" affine, noise and blur.

    The same `seed` gives the same result, whatever was drawn before.
    """
    if kind == "none":
        return {key: value.contiguous() for key, value in tensors.items()}
    keys = list(tensors)
    steps: list[Transform] = [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(2)]
    steps += [RandRotate90d(keys, prob=0.75, max_k=3)] if tensors[keys[0]].shape[1] == tensors[keys[0]].shape[2] else []
    if kind == "strong":
        steps += _strong_steps(keys, dimension)
    transform = Compose(steps).set_random_state(seed=seed)
    result = transform(dict(tensors))
    if kind == "contrast":
        result["image"] = change_contrast(torch.as_tensor(result["image"]), seed)
    return {
        key: torch.as_tensor(result[key].as_tensor() if isinstance(result[key], MetaTensor) else result[key])
        .to(tensors[key].dtype)
        .contiguous()
        for key in keys
    }


def change_contrast(image: torch.Tensor, seed: int) -> torch.Tensor:
    """Another contrast, brightness, curve and noise for a z-scored crop (C, *grid).

    Ours: gain 0.3 to 1.2 (scans of weak contrast are what few labelled ones lack), offset +-0.3, gamma 0.7 to 1.5 over
    the crop's range, Gaussian noise of up to 0.3.
    """
    generator = torch.Generator().manual_seed(seed)
    gain, offset, curve, spread = torch.rand(4, generator=generator).tolist()
    low, high = image.min(), image.max()
    span = (high - low).clamp_min(1e-6)
    curved = ((image - low) / span) ** math.exp(math.log(0.7) + curve * (math.log(1.5) - math.log(0.7))) * span + low
    noise = torch.randn(image.shape, generator=generator) * 0.3 * spread
    return curved * (0.3 + 0.9 * gain) + 0.3 * (2 * offset - 1) + noise


def _strong_steps(keys: list[str], dimension: int) -> list[Transform]:
    """Ours: moderate ranges in the spirit of nnU-Net's defaults, for very few labelled cases."""
    turn = (0.0, 0.0, 0.26) if dimension == 3 else (0.26,)  # radians, about 15 degrees in the plane
    modes = ["bilinear" if key == "image" else "nearest" for key in keys]
    return [
        RandAffined(
            keys, prob=0.5, rotate_range=turn, scale_range=(0.15,) * dimension, mode=modes, padding_mode="border"
        ),
        RandGaussianNoised("image", prob=0.15, std=0.1),
        RandGaussianSmoothd("image", prob=0.15, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0)),
        RandScaleIntensityd("image", prob=0.3, factors=0.25),
        RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
    ]


def _pad(tensor: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    missing = [max(p - n, 0) for n, p in zip(tensor.shape[1:], patch, strict=True)]
    if not any(missing):
        return tensor
    pads = [side for m in reversed(missing) for side in (m // 2, m - m // 2)]
    return torch.nn.functional.pad(tensor, pads)


def _working_spacing(config: PatchConfig, image: MetaTensor) -> tuple[float, ...]:
    spacing = config.spacing or spacing_of(image)
    if len(spacing) != image.ndim - 1:
        raise MedsegError(f"spacing {spacing} has {len(spacing)} values but the images have {image.ndim - 1} axes")
    return spacing


def automatic_scale(voxels: int, dimension: int) -> float:
    """1, 1/2, 1/4 ...: the first at which an image has at most a million voxels."""
    scale = 1.0
    while voxels * scale**dimension > 1e6:
        scale /= 2
    return scale


def in_one_piece(cases: Sequence[Case]) -> bool:
    """Whether every label of the first labelled masks is one connected piece; False where fewer than `ENOUGH` tell."""
    pieces, told = [], 0
    for case in [case for case in cases if case.label is not None][:LOOKED_AT]:
        assert case.label is not None
        try:
            mask = read_mask(case.label).as_tensor()[0].numpy()
        except MedsegError:  # told where it is read for training
            continue
        told += bool(mask.any())
        for value in np.unique(mask[mask > 0]):
            label = mask == value
            pieces.append(float(largest_component(label).sum() / label.sum()))
    whole = told >= ENOUGH and min(pieces) >= WHOLE
    if whole:
        log.info("every label of %d masks is in one piece: answers keep the largest piece of each", told)
    return whole


def first_readable(cases: Sequence[Case]) -> MetaTensor:
    """The first image that can be read; with none, the error of the first file."""
    errors: list[MedsegError] = []
    for case in cases:
        try:
            return read_image(case.image)
        except MedsegError as error:  # a damaged first file must not stop a run that has others
            errors.append(error)
    raise errors[0] if errors else MedsegError("there is no image to learn from")
