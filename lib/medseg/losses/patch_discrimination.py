"""Patch discrimination: the same place in two views must match, all other places must not."""

from __future__ import annotations

import torch
from torch.nn import functional as F

FORMS = ("nt_xent", "released")


class PatchDiscriminationLoss:
    """Contrastive loss over matched unit vectors.

    With P(j | i) = exp(v_i . v_j / tau) / sum_{k != i} exp(v_i . v_k / tau), i+ the partner of i and n = 2N anchors:

        nt_xent:   L = -1/n sum_i log P(i+ | i)
        released:  L = -1/n sum_i [log P(i+ | i) + sum_{j not in {i, i+}} log(1 - P(j | i))]

    Source: local discrimination card sec. 5 (arXiv 2108.09440; the released code).
    Deviation: log-softmax in float32 instead of quotients of exponentials, which give NaN once P(i+ | i) rounds to 1;
    `nt_xent` is the default, because the second sum is nearly constant (about 1) once negatives are spread.

    Args:
        temperature: tau.
        form: "nt_xent" or "released".
    """

    def __init__(self, temperature: float = 0.1, form: str = "nt_xent") -> None:
        if temperature <= 0:
            raise ValueError(f"temperature = {temperature} must be positive")
        if form not in FORMS:
            raise ValueError(f"form = {form!r} is unknown; choose one of {FORMS}")
        self.temperature, self.form = temperature, form

    def __call__(
        self,
        first: torch.Tensor,
        second: torch.Tensor,
        valid: torch.Tensor | None = None,
        blocked: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss; 0 with gradient where no pair is valid.

        Args:
            first: (N, D) unit vectors of one view; gradients flow into both views.
            second: (N, D) of the other view, row by row the same places.
            valid: (N,) bool; pairs that count. The others are neither anchors nor negatives.
            blocked: (N, N) bool, symmetric; pairs of places that are no negatives of each other (too near).
        """
        n = first.shape[0]
        with torch.autocast(first.device.type, enabled=False):  # a product in half precision is off by up to 0.4 % of 1
            vectors = torch.cat([first, second]).float()
            logits = vectors @ vectors.T / self.temperature
        log_p = F.log_softmax(logits.masked_fill(self._hidden(n, valid, blocked, logits.device), -1e4), dim=1)
        partner = torch.arange(2 * n, device=logits.device).roll(n)
        terms = -log_p.gather(1, partner[:, None])[:, 0]
        if self.form == "released":
            others = torch.ones_like(logits, dtype=torch.bool)
            others[torch.arange(2 * n), partner] = False
            terms = terms - torch.where(others, _log_one_minus_exp(log_p), 0.0).sum(dim=1)
        if valid is None:
            return terms.mean()
        counts = valid.repeat(2).float()
        return (terms * counts).sum() / counts.sum().clamp_min(1.0)

    @staticmethod
    def _hidden(n: int, valid: torch.Tensor | None, blocked: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """(2N, 2N) bool: what is not in an anchor's denominator; an anchor's partner always is."""
        hidden = torch.zeros(2 * n, 2 * n, dtype=torch.bool, device=device)
        if blocked is not None:
            hidden |= blocked.repeat(2, 2)
        if valid is not None:
            hidden |= ~valid.repeat(2)[None]
        rows = torch.arange(2 * n, device=device)
        hidden[rows, rows.roll(n)] = False
        hidden[rows, rows] = True
        return hidden


def mixed_target(first: torch.Tensor, second: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Target of a mixed image: normalise(share v(a) + (1 - share) v(b)), without gradient (card sec. 5).

    Args:
        first: (B, M, D) unit vectors of image a.
        second: (B, M, D) of image b at the same pixels.
        share: (B,) of a in the mix.
    """
    weight = share[:, None, None].to(first.dtype)
    return F.normalize(weight * first + (1 - weight) * second, dim=-1).detach()


def _log_one_minus_exp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, finite with a finite gradient even where exp(x) rounds to 1."""
    x = x.clamp(max=-1e-6)
    near = x > -0.6931
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    )
