"""All maps of one volume, and the decision on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from medseg.losses.rank_pseudo import IGNORE, rank_pseudo_label
from medseg.losses.region_pooling import region_means
from medseg.methods.base import Measurement, Sample
from medseg.methods.dram.baselines import (
    activation_map,
    gradient_map,
    intensity_logits,
    normalised_by_region,
    pooled_extents,
)
from medseg.methods.dram.config import DRAMConfig
from medseg.methods.dram.cuts import decided, otsu_cut
from medseg.methods.dram.extents import SLOTS
from medseg.methods.dram.network import DRAMNet
from medseg.transforms.regions import name_regions

NOTHING = 0.005
"""Ours: a region with a smaller predicted share gets no lesion from Otsu, which always returns something."""


@dataclass
class Reading:
    """Maps of one volume on the network's grid (*grid), and what follows from them.

    Attributes:
        maps: by stage, in order: "map", "attention", "crf", "final" (or the baseline's name); the last one decides.
        regions: ids; from the region mask, else split from the predicted lungs.
        names: region ids with their names.
        lungs: probability of lung; 0 or 1 where a region mask was given.
        decided: the last map moved so that one half is the decision.
        shares: predicted share by region id.
        residual: distance of the share from the stated interval by region id, in shares, signed; 0 inside.
        warnings: for the annotator.
    """

    maps: dict[str, torch.Tensor]
    regions: torch.Tensor
    names: Mapping[int, str]
    lungs: torch.Tensor
    decided: torch.Tensor
    shares: dict[int, float]
    residual: dict[int, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def last(self) -> torch.Tensor:
        """The map that decides."""
        return list(self.maps.values())[-1]

    @property
    def entropy(self) -> torch.Tensor:
        """(*grid) entropy of the decision in units of ln 2, 0 outside the lungs."""
        p = self.decided.clamp(1e-6, 1 - 1e-6)
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()) / 0.6931471805599453
        return entropy * (self.regions > 0)

    def measurements(self) -> dict[str, Measurement]:
        """What the model sees: extent of every region and of the whole lungs in per cent, and residuals in points."""
        found = {}
        for index, share in self.shares.items():
            name = self.names.get(index) or f"region_{index}"
            found[f"extent_{name}"] = Measurement(round(100 * share, 3), "%")
            if index in self.residual:
                found[f"residual_{name}"] = Measurement(round(100 * self.residual[index], 3), "points")
        if self.shares:
            size = {index: int((self.regions == index).sum()) for index in self.shares}
            whole = sum(share * size[index] for index, share in self.shares.items()) / sum(size.values())
            found["extent_lungs"] = Measurement(round(100 * whole, 3), "%")
        return found


def read_volume(network: DRAMNet, loaded: Sample, config: DRAMConfig) -> Reading:
    """Run the network on one volume, in eval mode and without gradient."""
    device = next(network.parameters()).device
    image = loaded["image"].as_tensor()[None].to(device)
    given = (loaded["regions"].as_tensor()[None].to(device) > 0).float() if "regions" in loaded else None
    logits, lung_logits, features = network.maps(image, given)
    final = None
    if network.final is not None:
        final, lung_logits = network.final_maps(image, given)
    regions, names, lungs = _regions(loaded, torch.sigmoid(lung_logits), config)
    if not bool((regions > 0).any()):
        empty = torch.zeros(image.shape[2:])
        warning = "no lung was found in this image; give a lung mask under tag regions"
        return Reading({"map": empty}, empty.to(torch.uint8), {}, empty, empty, {}, warnings=(warning,))
    stages, predicted = _stages(network, image, regions, (logits, features, final), config)
    cpu = {name: value[0, 0].float().cpu() for name, value in stages.items()}
    ids = regions[0, 0].cpu()
    maps = {name: torch.sigmoid(value) * (ids > 0) for name, value in cpu.items()}
    reading = Reading(maps, ids, names, lungs[0, 0].float().cpu(), torch.empty(0), {})
    _decide(reading, list(cpu.values())[-1], predicted, loaded, config)
    return reading


def stage_layers(reading: Reading, config: DRAMConfig) -> dict[str, torch.Tensor]:
    """The maps of a reading; where there is a final one, before it the rank-based pseudo-label of the map before.

    Its extents are the predicted ones; ignored voxels are one half.
    """
    layers = dict(reading.maps)
    if "final" not in layers or not reading.shares:
        return layers
    final = layers.pop("final")
    prob = list(layers.values())[-1]
    means, _ = region_means(prob[None, None], reading.regions[None, None], SLOTS)
    label = rank_pseudo_label(prob, reading.regions, means[0], config.band).float()
    layers["pseudo-label"] = torch.where(label == IGNORE, torch.full_like(label, 0.5), label)
    return {**layers, "final": final}


def _regions(
    loaded: Sample, lung_prob: torch.Tensor, config: DRAMConfig
) -> tuple[torch.Tensor, Mapping[int, str], torch.Tensor]:
    if "regions" in loaded:
        regions = loaded["regions"].as_tensor()[None].to(lung_prob.device)
        return regions, loaded["names"], (regions > 0).float()
    ids, names = name_regions((lung_prob[0, 0] > 0.5).cpu().numpy(), config.regions)
    return torch.from_numpy(ids)[None, None].to(lung_prob.device), names, lung_prob


def _stages(
    network: DRAMNet,
    image: torch.Tensor,
    regions: torch.Tensor,
    found: tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None],
    config: DRAMConfig,
) -> tuple[dict[str, torch.Tensor], dict[int, float]]:
    """Logits (1, 1, *grid) of every stage, the last one decides, and the predicted share of every region that is there.

    An activation map tells where, not how much: its shares are those of its regressor, else they are the map's means.
    """
    logits, features, final = found
    if config.head in ("cam", "gradcam"):
        means = pooled_extents(network, features, regions)
        activation = activation_map(network, features, image.shape[2:])
        if config.head == "gradcam":
            activation = gradient_map(network, image, regions)
        stages = {config.head: normalised_by_region(activation[0, 0], regions[0, 0])[None, None].logit(1e-6)}
    else:
        if config.head in ("threshold", "otsu"):
            cut = float(network.cut) if config.head == "threshold" else None
            stages = {config.head: intensity_logits(image[0, 0], regions[0, 0] > 0, cut)[None, None]}
        else:
            inside = (regions > 0).float()
            stages = {"map": logits, **network.refine(logits, image, features, inside)}
            if final is not None:
                stages["final"] = final
        means, _ = region_means(torch.sigmoid(list(stages.values())[-1].float()), regions, SLOTS)
    present = [int(i) for i in torch.unique(regions) if i > 0]
    return stages, {index: float(means[0, index]) for index in present}


def _decide(
    reading: Reading, logits: torch.Tensor, predicted: dict[int, float], loaded: Sample, config: DRAMConfig
) -> None:
    """Shares, residuals, and the decision by the configured rule; then stated extents move it (`follow_extents`)."""
    regions = reading.regions
    rule = config.final_rule if "final" in reading.maps else config.rule
    if config.head in ("threshold", "otsu"):
        rule = "half"  # their cut is in the logits
    level: float = 0.5
    by_rank: dict[int, float] = {}
    if rule == "rank":
        by_rank = predicted
    elif rule == "otsu":
        level = otsu_cut(reading.last[regions > 0])
        by_rank = {index: 0.0 for index, share in predicted.items() if share < NOTHING}
    reading.decided = decided(logits, regions, level, by_rank)
    reading.shares = predicted
    if rule != "rank":
        reading.shares = {i: float((reading.decided[regions == i] > 0.5).float().mean()) for i in predicted}
    wanted = {}
    for index, (low, high) in _stated(loaded).items():
        if index in reading.shares:
            share = reading.shares[index]
            reading.residual[index] = min(share - low, 0.0) + max(share - high, 0.0)
            if reading.residual[index]:
                wanted[index] = min(max(share, low), high)
    if wanted and config.follow_extents and loaded.get("source") != "mask":
        reading.decided = decided(logits, regions, level, {**by_rank, **wanted})


def _stated(loaded: Sample) -> dict[int, tuple[float, float]]:
    if "extents" not in loaded:
        return {}
    low, high, weight = loaded["extents"]
    return {i: (float(low[i]), float(high[i])) for i in range(SLOTS) if weight[i] > 0}
