"""A dense conditional random field with a window: differentiable binary mean field, linear in the number of voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from medseg.networks.neighbours import gather, window_offsets


class WindowedCRF(nn.Module):
    """T steps of q <- sigmoid(u + mu sum_j K_ij (2 q_j - 1)), q = sigmoid(u) at the start.

    K_ij = w_a exp(-|x_i - x_j|^2 / 2 s_x^2 - (I_i - I_j)^2 / 2 s_I^2) + w_s exp(-|x_i - x_j|^2 / 2 s_s^2) over the
    (2r + 1)^3 - 1 neighbours j inside the mask; rows sum to 1, so only w_a : w_s counts, and mu sets the strength. A
    voxel without neighbours in the mask keeps its unary. w_a, w_s and mu are learnt and stay positive (softplus).

    Source: Kraehenbuehl and Koltun, NIPS 2011, arXiv 1210.5644 (kernels and mean field); Zheng et al., ICCV 2015, arXiv
    1502.03240 (unrolled and trained). dRAM's abstract names only its existence; the form is the dRAM card's, sec. 5.
    Deviation: a window in place of all pairs, two classes, Potts compatibility.

    Args:
        radius: r, 1 or 2 voxels.
        steps: T.
        position: s_x, in the unit of `spacing`.
        intensity: s_I, in the unit of the image.
        smoothness: s_s, in the unit of `spacing`.
        strength: mu at the start; 0 makes the field an identity that stays one.
        learn: whether weights and strength are learnt.
    """

    def __init__(
        self,
        radius: int = 1,
        steps: int = 5,
        *,
        dimension: int = 3,
        position: float = 2.0,
        intensity: float = 0.1,
        smoothness: float = 1.0,
        strength: float = 1.0,
        learn: bool = True,
    ) -> None:
        super().__init__()
        if radius < 1 or steps < 1 or min(position, intensity, smoothness) <= 0 or strength < 0:
            raise ValueError(
                f"radius {radius} and steps {steps} must be at least 1, widths {position}, {intensity}, {smoothness} "
                f"positive and strength {strength} at least 0"
            )
        self.steps, self.offsets = steps, window_offsets(radius, dimension)
        self.widths = (position, intensity, smoothness)
        start = torch.tensor([_inverse_softplus(1.0), _inverse_softplus(1.0)])
        self.weights = nn.Parameter(start, requires_grad=learn)
        self.strength = nn.Parameter(torch.tensor(_inverse_softplus(strength)), requires_grad=learn)

    def forward(
        self, unary: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, spacing: Sequence[float]
    ) -> torch.Tensor:
        """Refine a map.

        Args:
            unary: (B, 1, *grid) logits u.
            image: (B, 1, *grid) windowed image I.
            mask: (B, 1, *grid), above 0 inside the lungs; outside, the map stays as it is.
            spacing: voxel size along each axis.

        Returns:
            (B, 1, *grid) logits of q after the last step, float32.
        """
        with torch.autocast(unary.device.type, enabled=False):
            unary = unary if unary.dtype == torch.float64 else unary.float()
            kernel = self.kernel(image.to(unary.dtype), mask, spacing)
            strength = F.softplus(self.strength)
            logits = unary
            for _ in range(self.steps):
                message = (kernel * gather(2 * torch.sigmoid(logits) - 1, self.offsets)).sum(dim=1, keepdim=True)
                logits = unary + strength * message
            return logits

    def kernel(self, image: torch.Tensor, mask: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
        """Normalised K (B, J, *grid); rows of voxels outside the mask, or alone in it, are 0."""
        position, intensity, smoothness = self.widths
        squares = [sum((o * s) ** 2 for o, s in zip(offset, spacing, strict=True)) for offset in self.offsets]
        distance = torch.tensor(squares, dtype=image.dtype, device=image.device)
        distance = distance.view(1, -1, *[1] * (image.ndim - 2))
        inside = (mask > 0).to(image.dtype)
        edges = gather(inside, self.offsets) * inside
        contrast = (gather(image, self.offsets) - image) ** 2
        appearance = torch.exp(-distance / (2 * position**2) - contrast / (2 * intensity**2))
        smooth = torch.exp(-distance / (2 * smoothness**2))
        w_a, w_s = F.softplus(self.weights)
        kernel = (w_a * appearance + w_s * smooth) * edges
        return kernel / kernel.sum(dim=1, keepdim=True).clamp_min(1e-12)


def _inverse_softplus(value: float) -> float:
    """x with log(1 + e^x) = value; for 0 a finite number whose softplus vanishes in float32."""
    return math.log(math.expm1(value)) if value > 0 else -100.0
