"""The loss of Seg4Reg+ on a batch in which every case has its own labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from medseg.losses.activation import attention_loss
from medseg.losses.angles import angle_loss
from medseg.losses.ramp import ramp_up
from medseg.losses.segmentation import SegmentationLoss
from medseg.methods.seg4reg.config import Seg4RegConfig
from medseg.methods.seg4reg.geometry import Limits, measure_quads
from medseg.methods.seg4reg.network import IMAGE, MASK, SOFT, Seg4RegNetwork, vertebra_prob
from medseg.methods.seg4reg.regressor import UNIT, Regression, as_picture
from medseg.methods.seg4reg.targets import GAP, VERTEBRA
from medseg.metrics.quads import quads_of_mask

Terms = dict[str, torch.Tensor]


@dataclass
class Examples:
    """A batch of cases; labels that are missing are zeros and their flag is 0.

    Attributes:
        image: (B, 2, x, y).
        label: (B, 1, x, y) background, vertebra, gap.
        has_mask: (B,).
        angles: (B, 3) in units of 90 degrees.
        has_angles: (B, 3).
        tilts: (B, 17) in units of 90 degrees.
        has_tilts: (B,).
        back: (B, 2, 3) from pixels of the grid to those of the picture before it was moved.
        rows: (B,) height of that picture.
    """

    image: torch.Tensor
    label: torch.Tensor
    has_mask: torch.Tensor
    angles: torch.Tensor
    has_angles: torch.Tensor
    tilts: torch.Tensor
    has_tilts: torch.Tensor
    back: torch.Tensor
    rows: torch.Tensor


def all_terms(network: Seg4RegNetwork, config: Seg4RegConfig, batch: Examples, iteration: int) -> Terms:
    """Named, weighted terms whose sum is the loss (Seg4Reg card sec. 6 and 9).

    A term is divided by the number of its valid items; without any it is 0 and has no gradient.
    """
    terms: Terms = {}
    regression = None
    if network.regressor is not None:
        regression = _regress_known(network, config, batch, terms)
    if network.segmenter is not None:
        logits = network.segment(batch.image, regression)
        terms["segmentation"] = segmentation_loss(logits, batch, config.gap_weight)
        if regression is not None:
            weight = triangle_weight(config, iteration)
            prob = vertebra_prob(logits)
            soft = network.regress(as_picture(prob if weight > 0 else prob.detach()), SOFT)
            terms["angles_soft"] = config.angle_weight * angle_loss(
                soft.angles, batch.angles, batch.has_angles, config.l1_weight
            )
            if config.triangle:
                terms["triangle"] = weight * triangle_loss(
                    config, regression, soft, vertebra_prob(logits.detach(), config.gap_bias), batch, iteration
                )
    return terms


def _regress_known(network: Seg4RegNetwork, config: Seg4RegConfig, batch: Examples, terms: Terms) -> Regression:
    """R on the images, and on the true masks where S is there; adds their terms."""
    weight, l1 = config.angle_weight, config.l1_weight
    x = network.regress(batch.image, IMAGE)
    terms["angles_image"] = weight * angle_loss(x.angles, batch.angles, batch.has_angles, l1)
    terms["tilts"] = config.tilt_weight * tilt_loss(x.tilts, batch.tilts, batch.has_tilts)
    if not config.segment:
        return x
    masked = torch.nonzero(batch.has_mask > 0)[:, 0]
    nothing = x.maps.sum() * 0
    terms["angles_mask"] = nothing
    if config.attention:
        terms["attention"] = nothing
    if len(masked):
        m = network.regress(as_picture((batch.label[masked] == VERTEBRA).to(batch.image.dtype)), MASK)
        terms["angles_mask"] = weight * angle_loss(m.angles, batch.angles[masked], batch.has_angles[masked], l1)
        tilts = tilt_loss(m.tilts, batch.tilts[masked], batch.has_tilts[masked])
        terms["tilts"] = terms["tilts"] + config.tilt_weight * tilts
        if config.attention:
            terms["attention"] = config.attention_weight * attention_loss(x.maps[masked], m.maps)
    return x


def segmentation_loss(logits: torch.Tensor, batch: Examples, gap_weight: float) -> torch.Tensor:
    """Dice and cross-entropy over the cases with a mask; the gap class weighs more."""
    masked = batch.has_mask[:, None, None, None].to(logits.dtype)
    if not bool(masked.any()):
        return logits.sum() * 0
    weight = masked * (1 + (gap_weight - 1) * (batch.label == GAP))
    return SegmentationLoss("dice_ce")(logits, batch.label, weight)


def tilt_loss(found: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the tilts over the cases whose corners are known."""
    error = (found - target).abs().mean(dim=1) * known
    return error.sum() / known.sum().clamp_min(1)


def triangle_weight(config: Seg4RegConfig, iteration: int) -> float:
    """0 during the warm-up, then a ramp to the full weight; 0 for a method without the triangle."""
    start = config.triangle_start * config.iterations
    if not config.triangle or iteration < start:
        return 0.0
    return config.triangle_weight * ramp_up(int(iteration - start), config.triangle_ramp * config.iterations)


def triangle_loss(
    config: Seg4RegConfig, image: Regression, soft: Regression, prob: torch.Tensor, batch: Examples, iteration: int
) -> torch.Tensor:
    """Distances between R(x), R(S(x)) and the geometry of S(x), all as in `angle_loss`.

    Geometry has no gradient: it is a target for the other two, and only where it finds a believable number of
    vertebrae.

    Source: Seg4Reg card sec. 6, L_tri.
    Deviation: on `geometry_cases` of a batch, in turn, because measuring a mask on the CPU costs as much as a step.
    """
    every = torch.ones_like(image.angles)
    loss = angle_loss(image.angles, soft.angles, every, config.l1_weight)
    size = len(prob)
    chosen = [(iteration * config.geometry_cases + k) % size for k in range(min(config.geometry_cases, size))]
    limits = Limits(config.lowest_count, config.highest_count)
    target, known = measured_angles(prob[chosen], batch.back[chosen], batch.rows[chosen], limits, config.refine_quads)
    for path in (image, soft):
        loss = loss + angle_loss(path.angles[chosen], target, known, config.l1_weight)
    return loss / 3


def measured_angles(
    prob: torch.Tensor, back: torch.Tensor, rows: torch.Tensor, limits: Limits, refine: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles (B, 3) in units of 90 degrees of soft masks (B, 1, x, y), and whether they are known (B, 3).

    Vertebrae are measured where they lay before the picture was moved: the angle rule asks in which half of the picture
    a curve is (Seg4Reg card sec. 5: the original height).

    Args:
        prob: probability of a vertebra.
        back: see `Examples`.
        rows: likewise.
        limits: believed counts.
        refine: see `quads_of_mask`.
    """
    masks = (prob.detach()[:, 0] > 0.5).cpu().numpy()
    target, known = torch.zeros(len(masks), 3), torch.zeros(len(masks), 3)
    for row, mask in enumerate(masks):
        quads = quads_of_mask(mask, refine)
        matrix = back[row].double().cpu().numpy()
        before = replace(quads, corners=quads.corners @ matrix[:, :2].T + matrix[:, 2])
        found = measure_quads(before, (1.0, 1.0), float(rows[row]), limits)
        if found.trusted and found.cobb is not None:
            target[row], known[row] = torch.tensor(found.cobb.angles) / UNIT, 1.0
    return target.to(prob.device), known.to(prob.device)
