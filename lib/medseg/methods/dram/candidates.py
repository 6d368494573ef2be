"""Soft candidates: a first guess of the lesion, from what the image shows without any learning."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

DEEPEST = 64
"""Most steps of the distance to the lungs' border, in voxels."""

START = (0.2, 0.8, 0.8, 1.2, 2.5)
"""Ours: weights of the features at the start, set on four volumes that no benchmark reports on; learnt from there."""

LEVEL = 0.2
"""Ours: the lungs' own level is this quantile of their intensities: healthy parenchyma even where half is diseased."""


class SoftCandidates(nn.Module):
    """Logits from five local features: brighter than the lungs' level, smooth, and near the pleura.

    From a few percentages alone a map may as well find what is not diseased (many maps, the constant one among them,
    solve the pooled loss). The released code therefore keeps to candidates, voxels above a threshold in their lobe, and
    leaves out vessels. Here candidates are soft and only where learning starts from: the backbone adds to them, and
    their weights are learnt.

    Features, in tenths of the window: the voxel, its mean over a small and a wider neighbourhood, each above the lungs'
    level; minus the deviation in the wider one, which is high at vessels; minus the depth below the lungs' border in
    the slice, relative to the deepest voxel, because ground glass lies outside and vessels meet at the hilum.

    Source: dRAM card sec. 6 and 7 (candidates above a threshold, AND NOT vessels).
    Deviation: soft, learnt further, no vessel mask.

    Args:
        window: edge of the small neighbourhood in voxels, odd; the wider one is two voxels wider.
    """

    def __init__(self, window: int = 3) -> None:
        super().__init__()
        self.window = window
        self.weights = nn.Parameter(torch.tensor(START))
        self.offset = nn.Parameter(torch.tensor(-3.0))

    def forward(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """(B, 1, *grid) logits, 0 outside the lungs."""
        with torch.autocast(image.device.type, enabled=False):
            features = candidate_features(image.float(), inside.float(), self.window)
            weights = self.weights.view(1, -1, 1, 1, 1)
            return ((features * weights).sum(dim=1, keepdim=True) + self.offset) * inside

    def score(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Logits without the offset, to fit it."""
        with torch.no_grad():
            return self(image, inside) - self.offset * inside


def candidate_features(image: torch.Tensor, inside: torch.Tensor, window: int) -> torch.Tensor:
    """(B, 5, *grid), see `SoftCandidates`; 0 outside the lungs."""
    with torch.no_grad():
        small, wide = (window, window, 3), (window + 2, window + 2, 3)
        mean, wider = local_mean(image, inside, small), local_mean(image, inside, wide)
        spread = (local_mean(image**2, inside, wide) - wider**2).clamp_min(0).sqrt()
        levels = [torch.quantile(_sampled(x[m > 0]), LEVEL) if bool((m > 0).any()) else x.new_zeros(()) for x, m in
                  zip(image, inside, strict=True)]  # fmt: skip
        level = torch.stack(levels).view(-1, 1, 1, 1, 1)
        features = [10 * (image - level), 10 * (mean - level), 10 * (wider - level), -10 * spread, -_depth(inside)]
        return torch.cat(features, dim=1) * inside


def local_mean(image: torch.Tensor, inside: torch.Tensor, window: tuple[int, int, int] = (3, 3, 3)) -> torch.Tensor:
    """Mean of the image over a box, voxels outside the lungs left out."""
    padding = [edge // 2 for edge in window]
    total = F.avg_pool3d(image * inside, window, stride=1, padding=padding)
    return total / F.avg_pool3d(inside, window, stride=1, padding=padding).clamp_min(1e-3)


def _depth(inside: torch.Tensor) -> torch.Tensor:
    """Steps to the lungs' border within the slice, divided by the most of the volume."""
    depth, left = torch.zeros_like(inside), inside
    for _ in range(DEEPEST):
        if not bool(left.any()):
            break
        depth = depth + left
        beyond = F.pad(left, (0, 0, 1, 1, 1, 1))  # the image's border is the lungs' border, too
        left = -F.max_pool3d(-beyond, (3, 3, 1), stride=1)
    return depth / depth.amax(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1)


def _sampled(values: torch.Tensor, most: int = 1_000_000) -> torch.Tensor:
    """Evenly spaced values, as `torch.quantile` takes no more than 16 million."""
    return values[:: max(1, len(values) // most)]
