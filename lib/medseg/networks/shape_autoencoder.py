"""Shape prior: an auto-encoder of label maps of several domains with one common code space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from medseg.networks.domain_norm import convert_batch_norm, domain_slots, domain_view, slot_key


class ShapeAutoencoder(nn.Module):
    """Encoder F and decoder G over class probabilities; filters are shared, norms and outer layers belong to a domain.

    The code is a map at a 16th of the grid, so that patches of any size have one. Once `freeze` is called, F and G stay
    fixed, their statistics too, and gradients pass through them to the input. The buffer `learnt` is 1 from then on,
    also in a model that starts from this one's file.

    Source: Boutillon et al., arXiv 2207.13502, and its ancestors 1910.08963, 2009.07092; card of the multi-domain
    method, sec. 6. Deviation: sizes are ours, the card knows none; a map of codes in place of one vector, because the
    segmentation network sees patches.

    Args:
        classes: classes of each domain, background included.
        axes: 2 or 3 spatial axes.
        width: channels of the first level.
        code: channels of the code.
    """

    learnt: torch.Tensor

    def __init__(self, classes: Mapping[str, int], axes: int = 2, width: int = 16, code: int = 64) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if axes == 2 else nn.BatchNorm3d
        self.frozen = False
        self.open: tuple[str, ...] = ()  # domains whose own layers go on learning
        self.register_buffer("learnt", torch.zeros(()))
        self.inputs = nn.ModuleDict({slot_key(name): conv(number, width, 1) for name, number in classes.items()})
        self.outputs = nn.ModuleDict({slot_key(name): conv(width, number, 1) for name, number in classes.items()})
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for before, after in pairwise([width, width, 2 * width, 4 * width, 4 * width]):
            down += [conv(before, after, 3, stride=2, padding=1, bias=False), norm(after), nn.LeakyReLU(0.1)]
        for before, after in pairwise([code, 4 * width, 2 * width, width, width]):
            up += [nn.Upsample(scale_factor=2.0), conv(before, after, 3, padding=1, bias=False), norm(after)]
            up += [nn.LeakyReLU(0.1)]
        down.append(conv(4 * width, code, 1))
        self.encoder = convert_batch_norm(nn.Sequential(*down), list(classes))
        self.decoder = convert_batch_norm(nn.Sequential(*up), list(classes))

    def encode(self, prob: torch.Tensor, domain: str) -> torch.Tensor:
        """Class probabilities (B, classes, *grid), background first, to codes (B, code, *ceil(grid / 16))."""
        code: torch.Tensor = domain_view(self.encoder, domain)(self.inputs[slot_key(domain)](prob))
        return code

    def forward(self, prob: torch.Tensor, domain: str) -> torch.Tensor:
        """Reconstruction: logits (B, classes, *grid) of class probabilities (B, classes, *grid)."""
        decoded = domain_view(self.decoder, domain)(self.encode(prob, domain))
        logits: torch.Tensor = self.outputs[slot_key(domain)](decoded)
        window: tuple[slice, ...] = (slice(None), slice(None), *(slice(0, n) for n in prob.shape[2:]))
        return logits[window]

    def shape_loss(self, prob: torch.Tensor, truth: torch.Tensor, domain: str) -> torch.Tensor:
        """Mean squared distance of the codes of a prediction and of the truth, both (B, classes, *grid)."""
        with torch.autocast(prob.device.type, enabled=False):
            with torch.no_grad():
                target = self.encode(truth.float(), domain)
            return F.mse_loss(self.encode(prob.float(), domain), target)

    def freeze(self, but: Sequence[str] = ()) -> None:
        """Fix the prior: no gradient for its weights, statistics as they are.

        Args:
            but: domains whose own layers (norms, in, out) go on learning, in the code space that is there.
        """
        self.frozen, self.open = True, tuple(but)
        self.learnt.fill_(1)
        self.requires_grad_(False).train(self.training)
        for name in self.open:
            for layer in self.own_layers(name):
                layer.requires_grad_(True)

    def own_layers(self, domain: str) -> list[nn.Module]:
        """What belongs to one domain alone: its first and last layer and its norms."""
        key = slot_key(domain)
        return [self.inputs[key], self.outputs[key], *domain_slots(self.encoder, domain),
                *domain_slots(self.decoder, domain)]  # fmt: skip

    def train(self, mode: bool = True) -> Self:
        """Train or eval mode; what is frozen stays in eval mode."""
        super().train(mode and not self.frozen)
        for name in self.open if mode else ():
            for layer in self.own_layers(name):
                layer.train()
        return self
