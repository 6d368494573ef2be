"""Omni-correlation consistency: two networks relate their voxels to a memory of labelled voxels in the same way."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_EXCLUDED = -1e4  # finite, so that a row without any column still has a defined softmax


class OmniCorrelationLoss(nn.Module):
    """Cross-entropy between two correlation distributions over the same memory.

    With embeddings f of voxel i and m of memory entry j, each branch has R_ij = softmax_j(f_i . m_j / tau), and the
    loss is -(1/N) sum_i sum_j R^A_ij log R^V_ij; in the symmetric form, the mean of both directions.

    Source: Gao et al., CAML, MICCAI 2023, arXiv 2307.06312; CAML card sec. 4.
    Deviation: embeddings are normalised and the target is detached by default, because with plain dot products rows
    collapse onto one large-norm entry; logarithms are log-softmax, never log(p + eps); a fixed number of rows and
    columns with masks, so that nothing waits for a count to reach the host; float32 under autocast.

    Args:
        temperature: tau.
        normalise: use cosine similarity.
        symmetric: each branch is the other's target; otherwise A is V's target.
        detach_target: stop the gradient at the target.

    Raises:
        ValueError: the temperature is not positive.
    """

    def __init__(
        self, temperature: float = 0.1, normalise: bool = True, symmetric: bool = True, detach_target: bool = True
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature = {temperature} must be positive")
        self.temperature = temperature
        self.normalise = normalise
        self.symmetric = symmetric
        self.detach_target = detach_target

    def forward(
        self,
        rows_v: torch.Tensor,
        rows_a: torch.Tensor,
        memory: torch.Tensor,
        row_mask: torch.Tensor | None = None,
        memory_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss of one set of voxels.

        Args:
            rows_v: (N, D) embeddings of the voxels by branch V.
            rows_a: (N, D) embeddings of the same voxels by branch A.
            memory: (M, D) embeddings of labelled voxels; no gradient flows into them.
            row_mask: (N,) bool, rows that count; None: all.
            memory_mask: (M,) bool, entries that exist; None: all.

        Returns:
            Scalar; exactly 0 where no row or no memory entry counts.
        """
        if rows_v.shape[0] == 0 or memory.shape[0] == 0:
            return rows_v.new_zeros((), dtype=torch.float32)
        with torch.autocast(rows_v.device.type, enabled=False):
            log_v = self.log_correlation(rows_v, memory, memory_mask)
            log_a = self.log_correlation(rows_a, memory, memory_mask)
            per_row = self._cross_entropy(log_a, log_v)
            if self.symmetric:
                per_row = 0.5 * (per_row + self._cross_entropy(log_v, log_a))
            return _mean(per_row, row_mask, memory_mask)

    def anchor(
        self,
        rows: torch.Tensor,
        memory: torch.Tensor,
        row_mask: torch.Tensor,
        memory_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Tie correlations to the classes: -log of the share of R_i that falls on entries of row i's own class.

        Ours: without it nothing tells the heads what to correlate with, and agreeing on a uniform (target detached) or
        on an arbitrary (not detached) distribution satisfies the loss above.

        Args:
            rows: (classes, N, D) embeddings of labelled voxels, by class.
            memory: (classes, M, D) embeddings of the bank, by class.
            row_mask: (classes, N) bool, rows that exist.
            memory_mask: (classes, M) bool, entries that exist.

        Returns:
            Scalar; 0 where nothing counts.
        """
        with torch.autocast(rows.device.type, enabled=False):
            log_r = self.log_correlation(rows.flatten(0, 1), memory.flatten(0, 1), memory_mask.flatten())
            log_share = log_r.view(*rows.shape[:2], *memory.shape[:2]).logsumexp(dim=3)  # (classes, N, classes)
            own = log_share.diagonal(dim1=0, dim2=2).T  # (classes, N)
            counts = row_mask & memory_mask.any(dim=1)[:, None]
            return _mean(-own.masked_fill(~counts, 0.0).flatten(), counts.flatten(), None)

    def log_correlation(self, rows: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """log R, (N, M), of rows (N, D) and memory (M, D) with entries `mask` (M,)."""
        rows, memory = rows.float(), memory.detach().float()
        if self.normalise:
            rows, memory = F.normalize(rows, dim=1), F.normalize(memory, dim=1)
        similarity = rows @ memory.T / self.temperature
        if mask is not None:
            similarity = similarity.masked_fill(~mask[None], _EXCLUDED)
        return F.log_softmax(similarity, dim=1)

    def _cross_entropy(self, log_target: torch.Tensor, log_learner: torch.Tensor) -> torch.Tensor:
        """-sum_j target_ij log learner_ij, (N,)."""
        target = log_target.exp()
        return -((target.detach() if self.detach_target else target) * log_learner).sum(dim=1)


def _mean(values: torch.Tensor, row_mask: torch.Tensor | None, memory_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the rows that count; 0 without gradient where there are none."""
    weight = torch.ones_like(values) if row_mask is None else row_mask.to(values.dtype)
    if memory_mask is not None:
        weight = weight * memory_mask.any().to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp_min(1.0)
