"""Which domain an image belongs to, and whether it is like any of them: a small network of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from medseg.networks.domain_norm import slot_key

WIDTHS = (16, 32, 48, 64)
FAR = 1e6  # reach before training: nothing is unlike it
MARGIN = 1.5  # ours: new patients lie farther out than those that were trained on


@dataclass(frozen=True)
class Guess:
    """A guessed domain.

    Attributes:
        domain: its name.
        confidence: mean probability over the views, in [0, 1].
        distance: distance from the domain's training images over the largest one there; above 1 is unusual.
    """

    domain: str
    confidence: float
    distance: float


class DomainClassifier(nn.Module):
    """Convolutions with group norm, which needs no domain to be known, global pooling and one linear layer.

    Centre, spread and reach of each domain's embeddings are found after training; an image that is farther from its
    domain than `MARGIN` times the 99th percentile of the training images is unlike all that was learnt.

    Source: card of the multi-domain method, sec. 10 [proposal]. Deviation: group norm, because
    instance norm fails on the single voxel that a small patch leaves; the distance is measured in the
    classifier's own embedding, which needs one pass and not one per domain.

    Args:
        channels: of the image.
        domains: names, in order.
        axes: 2 or 3 spatial axes.
    """

    def __init__(self, channels: int, domains: Sequence[str], axes: int = 2) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.domains = tuple(domains)
        layers: list[nn.Module] = []
        for before, after in zip((channels, *WIDTHS), WIDTHS, strict=False):
            layers += [conv(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.LeakyReLU(0.1)]
        self.body = nn.Sequential(*layers)
        self.rows = nn.ModuleDict({slot_key(name): nn.Linear(WIDTHS[-1], 1) for name in self.domains})
        for name in self.domains:
            self.register_buffer(f"centre_{slot_key(name)}", torch.zeros(WIDTHS[-1]))
            self.register_buffer(f"spread_{slot_key(name)}", torch.ones(WIDTHS[-1]))
            self.register_buffer(f"reach_{slot_key(name)}", torch.tensor(FAR))

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Images (B, C, *grid) to embeddings (B, E)."""
        return self.body(image).flatten(2).mean(dim=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Images (B, C, *grid) to logits (B, domains)."""
        return self.logits(self.embed(image))

    def logits(self, embedding: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, E) to logits (B, domains)."""
        return torch.cat([self.rows[slot_key(name)](embedding) for name in self.domains], dim=1)

    @torch.no_grad()
    def fit(self, domain: str, embeddings: torch.Tensor) -> None:
        """Learn where a domain lies from the embeddings of its training images, one row (E,) each: (n, E)."""
        centre, spread = embeddings.mean(dim=0), embeddings.std(dim=0, unbiased=False).clamp_min(1e-3)
        distances = ((embeddings - centre) / spread).square().mean(dim=1).sqrt()
        key = slot_key(domain)
        getattr(self, f"centre_{key}").copy_(centre)
        getattr(self, f"spread_{key}").copy_(spread)
        getattr(self, f"reach_{key}").copy_(MARGIN * torch.quantile(distances, 0.99).clamp_min(1.0))

    def distance(self, domain: str, embedding: torch.Tensor) -> float:
        """Distance of an image's embedding (E,) from a domain, over that domain's reach."""
        key = slot_key(domain)
        centre, spread, reach = (getattr(self, f"{name}_{key}") for name in ("centre", "spread", "reach"))
        return float(((embedding - centre) / spread).square().mean().sqrt() / reach)

    @torch.no_grad()
    def guess(self, views: torch.Tensor) -> Guess:
        """The domain of one image, from several views (V, C, *grid) of it."""
        embedding = self.embed(views)
        probability = torch.softmax(self.logits(embedding).float(), dim=1).mean(dim=0)
        best = int(probability.argmax())
        name = self.domains[best]
        return Guess(name, float(probability[best]), self.distance(name, embedding.mean(dim=0)))
