"""The terms beside the segmentation loss: contrast between domains, shape prior, adversary of shape codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from medseg.losses.ramp import ramp_up
from medseg.losses.supervised_contrastive import SupervisedContrastiveLoss, contrastive_floor
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.network import MultiDomainNet

Forward = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]
"""Logits (B, classes, *grid), classes of the truth (B, 1, *grid), pooled features (B, size) of each scale."""


@dataclass
class Sum:
    """A weighted sum of terms, and the terms for people to watch."""

    loss: torch.Tensor
    terms: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, name: str, weight: float, term: torch.Tensor) -> None:
        """Add one term."""
        self.loss = self.loss + weight * term
        self.terms[name] = term


class Regularisers:
    """l1 L_con + l2 L_shape + l3 L_adv of the card, sec. 5 and 6.

    Args:
        config: settings; a weight of 0 leaves a term out.
    """

    def __init__(self, config: MultiDomainConfig) -> None:
        self.config = config
        self.contrast = SupervisedContrastiveLoss(config.contrast_temperature)

    @property
    def prior_iterations(self) -> int:
        """Iterations of the first stage, in which the auto-encoder learns and is not yet listened to; 0 without one."""
        config = self.config
        return max(1, round(config.prior_share * config.iterations)) if config.has_prior else 0

    def __call__(self, network: MultiDomainNet, parts: Mapping[str, Forward], iteration: int) -> Sum:
        """All terms that are switched on, for one batch of each domain."""
        config = self.config
        device = next(iter(parts.values()))[0].device
        total = Sum(torch.zeros((), device=device))
        if config.contrast_weight > 0 and len(parts) > 1:
            self._contrast(network, parts, total)
        if network.prior is not None and iteration < self.prior_iterations:
            total.add("prior_reconstruction", 1.0, self._reconstruction(network, parts))
        elif config.shape_losses:
            after = iteration - self.prior_iterations
            ramp = ramp_up(after, 0.2 * (config.iterations - self.prior_iterations))
            self._shape(network, parts, total, ramp)
        return total

    def _contrast(self, network: MultiDomainNet, parts: Mapping[str, Forward], total: Sum) -> None:
        """Mean over the scales of the supervised contrastive loss with domains as groups."""
        groups = torch.cat([torch.full((len(logits),), i) for i, (logits, _, _) in enumerate(parts.values())])
        losses = []
        for scale, project in enumerate(network.projections):
            z = torch.cat([project(features[scale]) for _, _, features in parts.values()])
            losses.append(self.contrast(z, groups.to(z.device)))
        loss = torch.stack(losses).mean()
        total.add("contrast", self.config.contrast_weight, loss)
        total.terms["contrast_above_floor"] = loss.detach() - contrastive_floor(groups)

    def _reconstruction(self, network: MultiDomainNet, parts: Mapping[str, Forward]) -> torch.Tensor:
        """Cross-entropy of the auto-encoder on true masks, mean over domains."""
        assert network.prior is not None
        losses = []
        for name, (logits, label, _) in parts.items():
            again = network.prior(one_hot(label, logits.shape[1]), name)
            losses.append(F.cross_entropy(again.float(), label[:, 0]))
        return torch.stack(losses).mean()

    def _shape(self, network: MultiDomainNet, parts: Mapping[str, Forward], total: Sum, ramp: float) -> None:
        """Distance of the codes of prediction and truth; the adversary tells the two kinds of codes apart."""
        assert network.prior is not None
        shape, adversary, critic = [], [], []
        for name, (logits, label, _) in parts.items():
            prob, truth = torch.softmax(logits.float(), dim=1), one_hot(label, logits.shape[1])
            shape.append(network.prior.shape_loss(prob, truth, name))
            if network.critic is not None:
                fake, real = network.prior.encode(prob, name), network.prior.encode(truth, name).detach()
                fixed = {key: value.detach() for key, value in network.critic.named_parameters()}
                adversary.append(F.softplus(-torch.func.functional_call(network.critic, fixed, (fake,))).mean())
                critic.append(
                    F.softplus(-network.critic(real)).mean() + F.softplus(network.critic(fake.detach())).mean()
                )
        total.add("shape", self.config.prior_weight * ramp, torch.stack(shape).mean())
        if adversary:
            total.add("adversary", self.config.adversarial_weight * ramp, torch.stack(adversary).mean())
            total.add("critic", 1.0, torch.stack(critic).mean())


def one_hot(label: torch.Tensor, classes: int) -> torch.Tensor:
    """Classes (B, 1, *grid) to (B, classes, *grid) float."""
    return F.one_hot(label[:, 0], classes).movedim(-1, 1).float()
