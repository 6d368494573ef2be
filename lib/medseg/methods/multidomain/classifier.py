"""Which domain an image belongs to, and whether it is like any of them: a small network of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from medseg.networks.domain_norm import slot_key

WIDTHS = (16, 32, 48, 64)
WEIGHT = 1e-3  # ours: penalty of a row that is found afterwards
FAR = 1e6  # reach before training: nothing is unlike it
MARGIN = 1.2  # ours: new patients lie farther out than varied copies of those that were learnt from


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
    """Convolutions with group norm, which needs no domain to be known, pooling of all levels and one linear layer.

    Centre, spread and reach of each domain's embeddings are found after training; an image that is farther from its
    domain than `MARGIN` times the 95th percentile of the training images is unlike all that was learnt.

    Source: card of the multi-domain method, sec. 10 [proposal]. Deviation: group norm, because instance norm would
    take away how bright and how coarse a map is; the distance is measured in the classifier's own embedding, which
    needs one pass and not one per domain.

    Args:
        channels: of the image.
        domains: names, in order.
    """

    def __init__(self, channels: int, domains: Sequence[str]) -> None:
        super().__init__()
        self.domains = tuple(domains)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.LeakyReLU(0.1))
            for before, after in zip((channels, *WIDTHS), WIDTHS, strict=False)
        )
        self.rows = nn.ModuleDict({slot_key(name): nn.Linear(sum(WIDTHS), 1) for name in self.domains})
        for name in self.domains:
            self.register_buffer(f"centre_{slot_key(name)}", torch.zeros(sum(WIDTHS)))
            self.register_buffer(f"spread_{slot_key(name)}", torch.ones(sum(WIDTHS)))
            self.register_buffer(f"reach_{slot_key(name)}", torch.tensor(FAR))

    def embed(self, views: torch.Tensor) -> torch.Tensor:
        """Views (B, C, H, W) to embeddings (B, E): the means of all levels, fine ones tell grain, deep ones shapes."""
        found = []
        for level in self.body:
            views = level(views)
            found.append(views.flatten(2).mean(dim=2))
        return torch.cat(found, dim=1)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Views (B, C, H, W) to logits (B, domains)."""
        return self.logits(self.embed(views))

    def logits(self, embedding: torch.Tensor, among: Sequence[str] = ()) -> torch.Tensor:
        """Embeddings (B, E) to logits (B, domains) of all or of some domains."""
        return torch.cat([self.rows[slot_key(name)](embedding) for name in among or self.domains], dim=1)

    @torch.no_grad()
    def fit(self, domain: str, embeddings: Sequence[torch.Tensor]) -> None:
        """Learn where a domain lies.

        Centre and spread are those of all views; the reach is that of whole images, as `guess` measures them.

        Args:
            domain: its name.
            embeddings: of the views of each training image, as it is and varied, (V, E).
        """
        views = torch.cat(list(embeddings))
        key = slot_key(domain)
        getattr(self, f"centre_{key}").copy_(views.mean(dim=0))
        getattr(self, f"spread_{key}").copy_(views.std(dim=0, unbiased=False).clamp_min(1e-3))
        getattr(self, f"reach_{key}").fill_(1.0)
        distances = torch.tensor([self.distance(domain, found.mean(dim=0)) for found in embeddings])
        getattr(self, f"reach_{key}").fill_(MARGIN * float(torch.quantile(distances, 0.95).clamp_min(1e-3)))

    @torch.enable_grad()
    def fit_row(self, domain: str, embeddings: Sequence[torch.Tensor], among: Sequence[str]) -> None:
        """Find the row of a domain that came when the rest was fixed, where no image of the others is at hand.

        Logistic regression between its own views and draws from where the views of the others lay; nothing but the
        row changes.

        Args:
            domain: its name.
            embeddings: as `fit` takes them.
            among: domains that it is to be told from, whose rows stay as they are.
        """
        own = torch.cat(list(embeddings)).float()
        generator = torch.Generator().manual_seed(0)
        parts = [own]
        for name in among:
            centre, spread = self._place(name)
            parts.append(centre + spread * torch.randn(own.shape, generator=generator).to(own.device))
        rows = torch.cat(parts)
        truth = torch.arange(len(parts), device=own.device).repeat_interleave(len(own))
        mean, scale = rows.mean(dim=0), rows.std(dim=0).clamp_min(1e-6)
        others = self.logits(rows, among).detach()
        line = torch.zeros(rows.shape[1] + 1, device=own.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([line], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            mine = (rows - mean) / scale @ line[:-1] + line[-1]
            loss = nn.functional.cross_entropy(torch.cat([mine[:, None], others], dim=1), truth)
            loss = loss + WEIGHT * line.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        weight = line[:-1].detach() / scale
        row = {"weight": weight[None], "bias": line[-1:].detach() - (weight * mean).sum()}
        self.rows[slot_key(domain)].load_state_dict(row)

    def distance(self, domain: str, embedding: torch.Tensor) -> float:
        """Distance of an image's embedding (E,), the mean over its views, from a domain, over that domain's reach."""
        centre, spread = self._place(domain)
        reach = getattr(self, f"reach_{slot_key(domain)}")
        return float(((embedding - centre) / spread).square().mean().sqrt() / reach)

    @torch.no_grad()
    def guess(self, views: torch.Tensor, domain: str | None = None) -> Guess:
        """The domain of one image, from several views (V, C, H, W) of it.

        Args:
            views: of the image.
            domain: judge this one; None: the most probable.
        """
        embedding = self.embed(views)
        probability = torch.softmax(self.logits(embedding).float(), dim=1).mean(dim=0)
        name = domain or self.domains[int(probability.argmax())]
        return Guess(name, float(probability[self.domains.index(name)]), self.distance(name, embedding.mean(dim=0)))

    def _place(self, domain: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre and spread (E,) of a domain's embeddings."""
        key = slot_key(domain)
        return getattr(self, f"centre_{key}"), getattr(self, f"spread_{key}")
