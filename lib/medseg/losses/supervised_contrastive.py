"""Supervised contrastive loss: items of one group near each other, groups apart."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class SupervisedContrastiveLoss(nn.Module):
    """L = mean over i of - 1/|P(i)| sum over p in P(i) of log(exp(z_i.z_p/tau) / sum over a != i of exp(z_i.z_a/tau)).

    P(i) are the other items of i's group. With perfect clusters the loss is not 0 but near `contrastive_floor`.

    Source: Khosla et al., Supervised contrastive learning, NeurIPS 2020, arXiv 2004.11362, eq. 2 ("out"); card of the
    multi-domain method, sec. 5. Deviation: no factor tau/base; computed in float32 under autocast.

    Args:
        temperature: tau.

    Raises:
        ValueError: a temperature that is not positive.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be positive")
        self.temperature = temperature

    def forward(self, features: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """Scalar loss; 0, with a gradient of 0, where no group has two items or there is one group only.

        Args:
            features: (n, d); normalised here.
            groups: (n,) integers.
        """
        with torch.autocast(features.device.type, enabled=False):
            z = F.normalize(features.float(), dim=1)
            itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
            same = (groups[:, None] == groups[None]) & ~itself
            anchors = same.any(dim=1)
            if not bool(anchors.any()) or bool((groups == groups[0]).all()):
                return features.float().sum() * 0.0
            similarity = (z @ z.T / self.temperature).masked_fill(itself, -torch.inf)
            log_share = similarity - torch.logsumexp(similarity, dim=1, keepdim=True)
            positive = log_share.masked_fill(~same, 0.0).sum(dim=1) / same.sum(dim=1).clamp_min(1)
            return -positive[anchors].mean()


def contrastive_floor(groups: torch.Tensor) -> float:
    """The loss of perfect clusters at a small temperature: mean over anchors of log(n_k - 1), n_k items of a group."""
    _, sizes = torch.unique(groups, return_counts=True)
    counts = [int(size) for size in sizes if size > 1]
    return sum(n * math.log(n - 1) for n in counts) / sum(counts) if counts else 0.0
