"""Local attention that sharpens a map of logits with image detail, as shifted tensors."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from medseg.networks.neighbours import gather, near_offsets, shifted

FORMS = ("residual", "released")


class LocalAttention(nn.Module):
    """One step of attention of every voxel to its 18 neighbours (8 in 2D).

    residual: a_ij = softmax over j in N(i) and i itself of (q_i . k_j / sqrt(C)), d' = d + g (sum_j a_ij d_j - d),
    with q = Theta G and k = Phi G of the guidance G, and g in (0, 1) learnt. Weights sum to 1, so a constant map stays
    constant; neighbours outside the mask get no weight, so nothing leaks across the lung's border.

    released: a_ij = softmax over j in N(i), centre left out, of ReLU(q_i . k_j) / sqrt(|N(i)|),
    d' = R(sum_j a_ij (V d_j)), V 1 -> C and R C -> 1 linear; no residual, no mask.

    Source: Xie et al., arXiv 2105.11748, as released (dRAM card sec. 4).
    Deviation: "residual" corrects what the card lists: scaling by channels, no ReLU before the softmax, the centre
    included, no free sign, the mask; and needs no graph library. "released" stays on the map's own grid.

    Args:
        guidance: channels of the guidance.
        channels: C, of queries and keys.
        dimension: 2 or 3.
        form: one of `FORMS`.
    """

    def __init__(self, guidance: int, channels: int = 8, dimension: int = 3, form: str = "residual") -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form {form!r} is unknown; choose one of {', '.join(FORMS)}")
        conv = nn.Conv3d if dimension == 3 else nn.Conv2d
        self.form, self.channels, self.offsets = form, channels, near_offsets(dimension)
        self.query = conv(guidance, channels, 1)
        self.key = conv(guidance, channels, 1)
        if form == "released":
            self.value = conv(1, channels, 1)
            self.out = conv(channels, 1, 1)
        else:
            self.gate = nn.Parameter(torch.zeros(()))  # half-way between the map and its neighbours' mean

    def forward(self, logits: torch.Tensor, guidance: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Sharpen.

        Args:
            logits: (B, 1, *grid).
            guidance: (B, guidance, *grid); gradients stop here if the caller detaches it.
            mask: (B, 1, *grid), above 0 inside the lungs.

        Returns:
            (B, 1, *grid) logits.
        """
        weights = self.weights(guidance, mask)
        if self.form == "released":
            values = torch.stack(shifted(self.value(logits), self.offsets), dim=1)  # (B, J, C, *grid)
            return self.out((weights[:, :, None] * values).sum(dim=1))
        values = torch.cat([gather(logits, self.offsets), logits], dim=1)
        return logits + torch.sigmoid(self.gate) * ((weights * values).sum(dim=1, keepdim=True) - logits)

    def weights(self, guidance: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Attention (B, J, *grid), summing to 1 over J: the neighbours and, in the residual form, the centre last."""
        query, key = self.query(guidance), self.key(guidance)
        scores = [(query * other).sum(dim=1, keepdim=True) for other in shifted(key, self.offsets)]
        if self.form == "released":
            inside = gather(torch.ones_like(mask), self.offsets)
            count = inside.sum(dim=1, keepdim=True)
            score = F.relu(torch.cat(scores, dim=1)) / count.sqrt()
            return torch.softmax(score.float().masked_fill(inside == 0, -torch.inf), dim=1)
        scores.append((query * key).sum(dim=1, keepdim=True))
        score = torch.cat(scores, dim=1).float() / math.sqrt(self.channels)
        open_edges = torch.cat([gather((mask > 0).float(), self.offsets) * (mask > 0), torch.ones_like(mask)], dim=1)
        return torch.softmax(score.masked_fill(open_edges == 0, -torch.inf), dim=1)
