"""The card's baselines on the same backbone: activation maps of a regressor of extents, and intensity thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from medseg.losses.region_pooling import region_means
from medseg.methods.base import Sample, TrainingSet
from medseg.methods.dram.cuts import otsu_cut
from medseg.methods.dram.extents import SLOTS
from medseg.methods.dram.network import CAM_LEVEL, FACTORS, DRAMNet, cut, pad_to_factors

OTSU_FACTOR = 0.75  # dRAM card sec. 2: Otsu x 0.75 in the lung
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
GRADCAM_LEVEL = CAM_LEVEL - 1  # ours: at the regressor's own level Grad-CAM is its CAM


def pooled_extents(network: DRAMNet, maps: Sequence[torch.Tensor], regions: torch.Tensor) -> torch.Tensor:
    """Predicted shares (B, SLOTS): a linear regressor over the mean feature of every region, at `CAM_LEVEL`.

    Source: Zhou et al., CVPR 2016, arXiv 1512.04150 (global average pooling and one linear layer on a feature map).

    Args:
        network: with a regressor.
        maps: encoder features, finest first.
        regions: (B, 1, *grid) ids on the image's grid.
    """
    assert network.classifier is not None
    feature = maps[CAM_LEVEL].float()
    padded = pad_to_factors(regions.float()).round().to(regions.dtype)
    present = [index for index in range(1, SLOTS) if bool((regions == index).any())]
    result = torch.zeros(regions.shape[0], SLOTS, device=feature.device)
    for index in present:
        weight = _area(padded == index, feature.shape[2:])
        mean = (weight * feature).sum((2, 3, 4)) / weight.sum((2, 3, 4)).clamp_min(1e-6)
        with torch.autocast(feature.device.type, enabled=False):
            result[:, index] = torch.sigmoid(network.classifier(mean)[:, 0])
    return result


def activation_map(network: DRAMNet, maps: Sequence[torch.Tensor], grid: Sequence[int]) -> torch.Tensor:
    """Class activation map (B, 1, *grid): ReLU of the regressor applied to every voxel's feature, without its bias."""
    assert network.classifier is not None
    weight = network.classifier.weight.view(1, -1, *[1] * 3)
    return _enlarged(F.relu((maps[CAM_LEVEL].float() * weight).sum(dim=1, keepdim=True)), grid)


def gradient_map(network: DRAMNet, image: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (B, 1, *grid) of the predicted extents, one level above the regressor's, region by region.

    Source: Selvaraju et al., ICCV 2017, arXiv 1610.02391.
    """
    with torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        maps = network.backbone.encode(pad_to_factors(image))
        feature = maps[GRADCAM_LEVEL].detach().float().requires_grad_()
        maps = [*maps[:CAM_LEVEL], network.backbone.down[CAM_LEVEL](feature)]
        shares = torch.logit(pooled_extents(network, maps, regions).clamp(1e-6, 1 - 1e-6))
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


def intensity_logits(image: torch.Tensor, lungs: torch.Tensor, cut_value: float | None) -> torch.Tensor:
    """(*grid) logits that are positive where the image passes the cut; None: Otsu x 0.75 in the lungs."""
    level = OTSU_FACTOR * otsu_cut(image[lungs]) if cut_value is None else cut_value
    return (image - level) / 0.05


def _area(mask: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """(B, 1, *fine) to (B, 1, *coarse): the share of each coarse voxel."""
    return F.interpolate(mask.float(), tuple(grid), mode="area")


def _enlarged(activation: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """From a coarse level to the image's grid, padding taken off."""
    padded = [-(-n // f) * f for n, f in zip(grid, FACTORS, strict=True)]
    return cut(F.interpolate(activation, padded, mode="trilinear", align_corners=False), grid)
