"""Mutual consistency: each of two networks imitates the other's sharpened prediction."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def sharpen(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Class probabilities moved towards 0 or 1: p_k^(1/T) / sum_j p_j^(1/T), which is softmax(logits / T).

    Computed from the logits in float32, so that small probabilities do not underflow; the fixed points for two classes
    are p = 0, 0.5 and 1.

    Args:
        logits: (B, classes, *grid).
        temperature: T > 0; below 1 sharpens, 1 gives the plain softmax.
    """
    return torch.softmax(logits.float() / temperature, dim=1)


class MutualConsistencyLoss(nn.Module):
    """MSE(p_V, sharpen(p_A)) + MSE(p_A, sharpen(p_V)), the mean over voxels and classes; float32 under autocast.

    Source: Wu et al., MC-Net, MICCAI 2021, arXiv 2103.02911; CAML card sec. 5.
    Deviation: any number of classes.

    Args:
        temperature: of the sharpening.
        detach_target: stop the gradient at the sharpened target; CAML lets it pass.

    Raises:
        ValueError: the temperature is not positive.
    """

    def __init__(self, temperature: float = 0.1, detach_target: bool = False) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature = {temperature} must be positive")
        self.temperature = temperature
        self.detach_target = detach_target

    def forward(self, logits_v: torch.Tensor, logits_a: torch.Tensor) -> torch.Tensor:
        """Scalar loss of two logit maps (B, classes, *grid)."""
        with torch.autocast(logits_v.device.type, enabled=False):
            return self._one_way(logits_v, logits_a) + self._one_way(logits_a, logits_v)

    def _one_way(self, learner: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        target = sharpen(teacher.detach() if self.detach_target else teacher, self.temperature)
        return F.mse_loss(torch.softmax(learner.float(), dim=1), target)
