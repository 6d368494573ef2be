"""Pseudo-labels for the final network: computed once, from the frozen first stage."""

from __future__ import annotations

import logging

import torch

from medseg.losses.rank_pseudo import IGNORE, clip_to_interval, rank_pseudo_label
from medseg.losses.region_pooling import region_means
from medseg.methods.base import Sample, TrainingSet
from medseg.methods.dram.config import DRAMConfig
from medseg.methods.dram.extents import SLOTS, parse_table
from medseg.methods.dram.network import DRAMNet

log = logging.getLogger(__name__)


def freeze_pseudo_labels(network: DRAMNet, training: TrainingSet, config: DRAMConfig) -> dict[str, torch.Tensor]:
    """Pseudo-labels of all cases with regions and extents, (1, *grid) uint8 by case id.

    The most likely voxels of the refined map, as many as the extent says; a band around the cut is ignored. Where map
    and refined map agree on too few of these voxels, the whole region is ignored.

    Deterministic: eval mode, and the first stage gets no gradient any more.
    """
    training_mode = network.training
    network.eval()
    found, dropped = {}, 0
    with torch.no_grad():
        for case in training.cases:
            loaded = training.load(case)
            if "extents" in loaded and bool((loaded["extents"][2] > 0).any()):
                found[case.id], count = pseudo_label(network, loaded, config)
                dropped += count
    network.train(training_mode)
    log.info("pseudo-labels of %d cases are frozen; %d regions are left out for want of agreement", len(found), dropped)
    return found


def believed(means: torch.Tensor, extents: torch.Tensor, healthy: float) -> torch.Tensor:
    """The extents (SLOTS,) that pseudo-labels get: predicted ones moved into what was stated; NaN where nothing was.

    A region stated to be healthy has none, whatever the map says: 0 %, score 0, any interval that lies within score 0.

    Args:
        means: (SLOTS,) predicted shares.
        extents: (3, SLOTS) low, high, weight.
        healthy: upper end of score 0, as a share.
    """
    low, high, weight = extents
    clipped = clip_to_interval(means, low, high, weight > 0)
    return torch.where((weight > 0) & (low <= 0) & (high <= healthy), torch.zeros_like(clipped), clipped)


def pseudo_label(network: DRAMNet, loaded: Sample, config: DRAMConfig) -> tuple[torch.Tensor, int]:
    """One case's pseudo-label (1, *grid), and the number of regions left out."""
    device = next(network.parameters()).device
    image = loaded["image"].as_tensor()[None].to(device)
    regions = loaded["regions"].as_tensor().to(device)
    logits, _, features = network.maps(image, (regions > 0)[None].float())
    refined = network.refine(logits, image, features, (regions > 0)[None].float())
    last = list(refined.values())[-1] if refined else logits
    means, _ = region_means(torch.sigmoid(last), regions[None], SLOTS)
    stated = loaded["extents"].to(device)
    extents = believed(means[0], stated, parse_table(config.score_table)[1] / 100)
    label = rank_pseudo_label(last[0, 0], regions[0], extents, config.band)
    before = rank_pseudo_label(logits[0, 0], regions[0], extents, 0.0)
    dropped = 0
    for index in torch.nonzero(stated[2] > 0)[:, 0].tolist():
        inside = regions[0] == index
        one, two = label[inside] == 1, before[inside] == 1
        total = int(one.sum() + two.sum())
        if total and 2 * int((one & two).sum()) / total < config.least_agreement:
            label[inside] = IGNORE
            dropped += 1
    return label[None].cpu(), dropped
