"""The losses of both stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from medseg.losses.binary import balanced_cross_entropy, binary_dice_ce, binary_entropy, equivariance
from medseg.losses.interval import IntervalLoss
from medseg.losses.ramp import ramp_up
from medseg.losses.rank_pseudo import IGNORE, rank_pseudo_label
from medseg.losses.region_pooling import region_means
from medseg.methods.base import StepOutput, TrainingSet
from medseg.methods.dram.baselines import fit_threshold, pooled_extents
from medseg.methods.dram.config import DRAMConfig
from medseg.methods.dram.extents import SLOTS, parse_table
from medseg.methods.dram.network import DRAMNet
from medseg.methods.dram.pseudo import believed
from medseg.methods.dram.turns import Turn

Drawn = Mapping[str, torch.Tensor]
Add = Callable[[str, float, torch.Tensor], None]
"""Notes a term of the loss: name, weight, value."""


class Objective:
    """Losses with what they know of the training set.

    Stage 1: L = w_r (I(p) + [I(p_att) + I(p_crf)] / n) + w_f [CE(p_att, t) + CE(p_crf, t)] / n + ramp (w_e entropy) +
    w_q equivariance + w_l lungs, I the interval loss of the region means, t the rank-based pseudo-label of the detached
    map with the extents clipped to their intervals. The brackets begin at `refine_from`.

    Source: dRAM card sec. 5 (joint loss) and 6 (2 x regression + 1 x refined).
    """

    def __init__(self, config: DRAMConfig) -> None:
        self.config = config
        self.interval = IntervalLoss(config.power)
        self.edges = torch.tensor(parse_table(config.score_table)) / 100
        self.healthy = float(self.edges[1])
        self.class_weight = torch.ones(len(self.edges) - 1)
        self.median = 0.1

    def prepare(self, training: TrainingSet) -> None:
        """Class weights and median extent of the training regions; depends on the labels only."""
        middles = []
        for case in training.cases:
            loaded = training.load(case)
            if "extents" in loaded:
                low, high, weight = loaded["extents"]
                middles.append(((low + high) / 2)[weight > 0])
        known = torch.cat(middles) if middles else torch.empty(0)
        if not len(known):
            return
        self.median = float(known.median())
        share = torch.bincount(self._classes(known), minlength=len(self.class_weight)) / len(known)
        weight = 1 / share.clamp(0.2, 0.8)  # dRAM card sec. 6
        self.class_weight = weight / (weight * share).sum() if self.config.balance else torch.ones_like(weight)

    def fit_start(self, network: DRAMNet, training: TrainingSet) -> None:
        """Start the lesion map at the candidates, or at the median extent: from one half, vanishing gradients stall it.

        Once only: a run that resumes has learnt its bias.
        """
        if bool(network.started):
            return
        assert network.backbone.head is not None
        bias = network.backbone.head.bias
        assert bias is not None
        level = torch.logit(torch.tensor(min(max(self.median, 0.02), 0.5)))
        with torch.no_grad():
            network.started.fill_(True)
            bias[0] = level
            if network.candidates is not None:
                network.candidates.offset.fill_(-fit_threshold(training, network.candidates.cpu().score))
                network.candidates.to(bias.device)
                bias[0] = 0.0
                network.backbone.head.weight[0] = 0.0
            if network.classifier is not None:
                network.classifier.bias.fill_(float(level))

    def regression(self, network: DRAMNet, drawn: Drawn, iteration: int) -> StepOutput:
        """Loss of stage 1."""
        config = self.config
        image, regions = drawn["image"], drawn["regions"]
        inside = (regions > 0).float()
        logits, lungs, features = network.maps(image, inside)
        terms: dict[str, torch.Tensor] = {}
        weights: dict[str, float] = {}

        def add(name: str, weight: float, value: torch.Tensor) -> None:
            terms[name] = value
            weights[name] = weight

        if config.lung_weight > 0:
            add("lungs", config.lung_weight, binary_dice_ce(lungs, inside, torch.ones_like(inside)))
        if config.head in ("cam", "gradcam"):
            shares = pooled_extents(network, features, regions)
            add("regression", config.regression_weight, self._pooled(shares, drawn))
        elif config.head == "dense":
            self._dense(network, drawn, iteration, (logits, features), add)
        nothing = 0.0 * lungs.mean()  # a threshold without a lung map has no term
        loss = sum((weights[name] * value for name, value in terms.items()), start=nothing)
        return StepOutput(loss, {name: value.detach() for name, value in terms.items()})

    def final(self, network: DRAMNet, drawn: Drawn) -> StepOutput:
        """Loss of stage 2: Dice and cross-entropy on pseudo-labels, true masks where there are some, and lungs."""
        inside = (drawn["regions"] > 0).float()
        logits, lungs = network.final_maps(drawn["image"], inside)
        truth = drawn["has_mask"].view(-1, 1, 1, 1, 1)
        target = torch.where(truth > 0, drawn["label"], drawn["pseudo"])
        known = (target != IGNORE).float()
        terms = {
            "final": binary_dice_ce(logits, target, known * inside),
            "lungs": binary_dice_ce(lungs, inside, torch.ones_like(inside)),
        }
        loss = terms["final"] + self.config.lung_weight * terms["lungs"]
        return StepOutput(loss, {name: value.detach() for name, value in terms.items()})

    # -- details -----------------------------------------------------------------------------------------------------

    def _dense(
        self, network: DRAMNet, drawn: Drawn, iteration: int, found: tuple[torch.Tensor, list[torch.Tensor]], add: Add
    ) -> None:
        config = self.config
        logits, features = found
        image, regions = drawn["image"], drawn["regions"]
        inside = (regions > 0).float()
        if config.regression_weight > 0:
            add("regression", config.regression_weight, self._share(logits, drawn))
        if config.masks == "voxels" and bool((drawn["has_mask"] > 0).any()):
            known = inside * drawn["has_mask"].view(-1, 1, 1, 1, 1)
            add("masks", 1.0, binary_dice_ce(logits, drawn["label"], known))
        length = config.final_start
        if config.entropy_weight > 0:
            ramp = ramp_up(iteration, length)
            add("entropy", config.entropy_weight * ramp, binary_entropy(logits, inside))
        if config.equivariance_weight > 0:
            turn = Turn.draw()
            turned = turn.undo(network.maps(turn.apply(image), turn.apply(inside))[0])
            change = equivariance(torch.sigmoid(logits), torch.sigmoid(turned), inside)
            add("equivariance", config.equivariance_weight, change)
        if iteration >= config.refine_from * length:
            refined = network.refine(logits, image, features, inside)
            if refined:
                target = self.pseudo_target(logits, drawn)
                known = (target != IGNORE).float() * inside
                for name, value in refined.items():
                    add(f"{name}_regression", config.regression_weight / len(refined), self._share(value, drawn))
                    ce = balanced_cross_entropy(value, target, known)
                    add(f"{name}_ce", config.refined_weight / len(refined), ce)

    def pseudo_target(self, logits: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        """Rank-based pseudo-label of the detached map, (B, 1, *grid)."""
        with torch.no_grad():
            means, _ = region_means(torch.sigmoid(logits.detach()), drawn["regions"], SLOTS)
            labels = [
                rank_pseudo_label(p[0], r[0], believed(m, e, self.healthy), self.config.band)
                for p, r, m, e in zip(logits.detach(), drawn["regions"], means, drawn["extents"], strict=True)
            ]
            return torch.stack(labels)[:, None]

    def _share(self, logits: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        means, _ = region_means(torch.sigmoid(logits), drawn["regions"], SLOTS)
        return self._pooled(means, drawn)

    def _pooled(self, means: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        low, high, weight = drawn["extents"].unbind(dim=1)
        scale = self.class_weight.to(weight.device)[self._classes((low + high) / 2)]
        return self.interval(means, low, high, weight * scale)

    def _classes(self, share: torch.Tensor) -> torch.Tensor:
        edges = self.edges.to(share.device)
        return (torch.searchsorted(edges, share.contiguous(), right=True) - 1).clamp(0, len(self.class_weight) - 1)
