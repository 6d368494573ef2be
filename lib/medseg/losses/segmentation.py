"""Soft Dice, alone or with cross-entropy, over a whole mini-batch, with optional voxel weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

KINDS = ("dice", "dice_ce")


class SegmentationLoss(nn.Module):
    """Supervised loss of a segmentation.

    Dice of class k is 2 sum(p_k y_k) / (sum p_k + sum y_k), the sums over all voxels of all images of the batch; the
    loss is one minus its mean over the foreground classes. Without weights this is MONAI's `DiceLoss(softmax=True,
    to_onehot_y=True, include_background=False, batch=True)`, which has no voxel weights.

    Source: Milletari et al., arXiv 1606.04797, with the plain denominator of the CAML card sec. 5.
    Deviation: computed in float32 under autocast; "dice_ce" adds the mean cross-entropy.

    Args:
        kind: "dice" or "dice_ce".
        smooth: added to numerator and denominator, so that an absent class that is not predicted costs nothing.

    Raises:
        ValueError: unknown kind.
    """

    def __init__(self, kind: str = "dice", smooth: float = 1e-5) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"loss kind {kind!r} is unknown; choose one of {KINDS}")
        self.kind = kind
        self.smooth = smooth

    def forward(self, logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """Scalar loss.

        Args:
            logits: (B, 1 + N, *grid).
            label: (B, 1, *grid), values 0..N.
            weight: (B, 1, *grid), weight of each voxel; None: 1 everywhere.
        """
        with torch.autocast(logits.device.type, enabled=False):
            log_prob = torch.log_softmax(logits.float(), dim=1)
            index = label.long()
            loss = self._dice(log_prob, index, weight)
            if self.kind == "dice_ce":
                loss = loss + _cross_entropy(log_prob, index, weight)
            return loss

    def _dice(self, log_prob: torch.Tensor, index: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        prob = log_prob.exp() if weight is None else log_prob.exp() * weight
        scores = []
        for k in range(1, prob.shape[1]):  # class by class: a one-hot map of many classes would not fit
            truth = index[:, 0] == k
            there = truth.to(prob.dtype) if weight is None else truth * weight[:, 0]
            overlap = (prob[:, k] * truth).sum()
            scores.append((2 * overlap + self.smooth) / (prob[:, k].sum() + there.sum() + self.smooth))
        return 1 - torch.stack(scores).mean()


def _cross_entropy(log_prob: torch.Tensor, index: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    per_voxel = F.nll_loss(log_prob, index[:, 0], reduction="none")
    if weight is None:
        return per_voxel.mean()
    return (per_voxel * weight[:, 0]).sum() / weight.sum().clamp_min(1e-6)
