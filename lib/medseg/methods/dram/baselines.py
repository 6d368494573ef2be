"""The card's baselines on the same backbone: activation maps of a regressor of extents, and intensity thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from medseg.losses.region_pooling import region_means
from medseg.methods.base import Sample, TrainingSet
from medseg.methods.dram.cuts import otsu_cut
from medseg.methods.dram.extents import SLOTS
from medseg.methods.dram.network import DRAMNet, cut, pad_to_factors

OTSU_FACTOR = 0.75  # dRAM card sec. 2: Otsu x 0.75 in the lung
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
GRADCAM_LEVEL = 2  # ours: one level above the deepest, whose Grad-CAM is its CAM


def pooled_extents(network: DRAMNet, deepest: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Predicted shares (B, SLOTS): a linear regressor over the mean deepest feature of every region.

    Source: Zhou et al., CVPR 2016, arXiv 1512.04150 (global average pooling and one linear layer).
    """
    assert network.classifier is not None
    grid = deepest.shape[2:]
    deepest = deepest.float()
    share = torch.stack([_area(regions == index, grid) for index in range(1, SLOTS) if (regions == index).any()], 1)
    present = [index for index in range(1, SLOTS) if (regions == index).any()]
    weights = share.flatten(2)  # (B, R, V)
    features = (weights[:, :, None] * deepest.flatten(2)[:, None]).sum(-1)
    features = features / weights.sum(-1, keepdim=True).clamp_min(1e-6)
    result = torch.zeros(regions.shape[0], SLOTS, device=deepest.device)
    with torch.autocast(deepest.device.type, enabled=False):
        result[:, present] = torch.sigmoid(network.classifier(features.float())[..., 0])
    return result


def activation_map(network: DRAMNet, deepest: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Class activation map (B, 1, *grid): ReLU of the regressor applied to every voxel's feature, without its bias."""
    assert network.classifier is not None
    weight = network.classifier.weight.view(1, -1, *[1] * 3)
    return _enlarged(F.relu((deepest.float() * weight).sum(dim=1, keepdim=True)), grid)


def gradient_map(network: DRAMNet, image: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (B, 1, *grid) of the predicted extents, one level above the deepest, region by region.

    Source: Selvaraju et al., ICCV 2017, arXiv 1610.02391.
    """
    with torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        maps = network.backbone.encode(pad_to_factors(image))
        feature = maps[GRADCAM_LEVEL].detach().float().requires_grad_()
        deepest = network.backbone.down[GRADCAM_LEVEL + 1](feature)
        padded = pad_to_factors(regions.float()).round().to(regions.dtype)
        shares = torch.logit(pooled_extents(network, deepest, padded).clamp(1e-6, 1 - 1e-6))
        result = torch.zeros_like(image)
        for index in torch.unique(regions).tolist():
            if index:
                (gradient,) = torch.autograd.grad(shares[:, index].sum(), feature, retain_graph=True)
                weight = gradient.mean(dim=(2, 3, 4), keepdim=True)
                cam = F.relu((weight * feature).sum(dim=1, keepdim=True)).detach()
                result = torch.where(regions == index, _enlarged(cam, image.shape[2:]), result)
    return result


def normalised_by_region(activation: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """A map (*grid) divided by its largest value in every region (dRAM card sec. 7: the released test script)."""
    result = torch.zeros_like(activation)
    for index in torch.unique(regions).tolist():
        if index:
            inside = regions == index
            result[inside] = activation[inside] / activation[inside].max().clamp_min(1e-6)
    return result


def fit_threshold(training: TrainingSet, score: Score | None = None, steps: int = 200) -> float:
    """The one cut above which the regions' shares come nearest to their extents.

    Nearest in the sum of squared differences of square roots, so that a region of 60 % does not decide alone.

    Args:
        training: cases with extents.
        score: (1, 1, *grid) image and lungs to what is cut; None: the image itself.
        steps: cuts tried, evenly between the lowest and the highest score in the lungs.
    """
    found = []
    for case in training.cases:
        loaded: Sample = training.load(case)
        if "extents" not in loaded:
            continue
        image, regions = loaded["image"].as_tensor()[None], loaded["regions"].as_tensor()[None]
        inside = regions > 0
        values = image if score is None else score(image, inside.float())
        found.append((values[inside], regions[inside].long(), loaded["extents"]))
    if not found:
        return 0.5
    low, high = min(float(v.min()) for v, _, _ in found), max(float(v.max()) for v, _, _ in found)
    cuts = torch.linspace(low, high, steps)
    error = torch.zeros(steps, dtype=torch.float64)
    for values, regions, (lower, upper, weight) in found:
        wanted = ((lower + upper) / 2).sqrt()
        for position, value in enumerate(cuts.tolist()):
            shares, _ = region_means((values > value).float()[None, None], regions[None, None], SLOTS)
            error[position] += float((weight * (shares[0].sqrt() - wanted) ** 2).sum())
    return float(cuts[int(error.argmin())])


def intensity_map(image: torch.Tensor, lungs: torch.Tensor, cut_value: float | None) -> torch.Tensor:
    """(*grid) map that passes one half where the image passes the cut; None: Otsu x 0.75 in the lungs."""
    level = OTSU_FACTOR * otsu_cut(image[lungs]) if cut_value is None else cut_value
    return torch.sigmoid((image - level) / 0.05)


def _area(mask: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """(B, 1, *fine) to (B, *coarse): the share of each coarse voxel."""
    return F.interpolate(mask.float(), tuple(grid), mode="area")[:, 0]


def _enlarged(activation: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """From a coarse level to the image's grid, padding taken off."""
    padded = [-(-n // f) * f for n, f in zip(grid, (8, 8, 4), strict=True)]
    return cut(F.interpolate(activation, padded, mode="trilinear", align_corners=False), grid)
