"""R: three Cobb angles from an image or a mask, with activation maps that average exactly to its output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from medseg.methods.seg4reg.picture import CHANNELS
from medseg.methods.seg4reg.targets import VERTEBRAE

UNIT = 90.0
"""Degrees per unit of R's output; Seg4Reg card sec. 6."""

TYPICAL = (40.0, 20.0, 20.0)
"""Degrees that the head says before it has learnt anything: the rounded mean of the challenge's labels."""

ROWS = 16


@dataclass
class Regression:
    """Output of R.

    Attributes:
        angles: (B, 3) in units of 90 degrees, never negative.
        raw: (B, 3) before the output activation.
        maps: (B, 3, h, w) activation maps; their mean over the map is `raw`.
        tilts: (B, 17) in units of 90 degrees.
    """

    angles: torch.Tensor
    raw: torch.Tensor
    maps: torch.Tensor
    tilts: torch.Tensor


class Regressor(nn.Module):
    """A small residual network, average pooling and a linear head.

    Source: Seg4Reg card sec. 6. The activation map of output j is A_j(u) = sum_c W[j, c] F_c(u) + b_j: a 1x1
    convolution with the head's own weights, whose mean over the map is the output before its activation.
    Deviation: random weights and a small network instead of an ImageNet DenseNet, softplus instead of a sigmoid times
    90, which cannot reach angles above 90 degrees. With `tilts` the features are scaled, channel by channel, by what R
    thinks of the 17 tilts and of the angle rule on them; the head stays linear and the maps stay exact.

    Args:
        width: channels of the last features.
        stem: the image is averaged over so many pixels first; one cell of the maps is `8 * stem` pixels of the grid.
        tilts: whether features are scaled by the tilts.
    """

    def __init__(self, width: int = 128, stem: int = 2, tilts: bool = True) -> None:
        super().__init__()
        self.stem = stem
        narrow = max(width // 4, 8)
        self.features = nn.Sequential(
            _layer(CHANNELS, narrow, stride=2),
            Residual(narrow, narrow),
            _layer(narrow, 2 * narrow, stride=2),
            Residual(2 * narrow, 2 * narrow),
            _layer(2 * narrow, width, stride=2),
            Residual(width, width, dilation=2),
            Residual(width, width, dilation=4),
        )
        self.profile = nn.Sequential(
            nn.Conv1d(width, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(2 * ROWS), nn.Flatten()
        )
        self.tilts = nn.Linear(64 * ROWS, VERTEBRAE)
        self.gain = nn.Sequential(nn.Linear(VERTEBRAE + 6, 64), nn.ReLU(), nn.Linear(64, width)) if tilts else None
        self.head = nn.Linear(width, 3)
        with torch.no_grad():
            start = torch.tensor(TYPICAL) / UNIT
            self.head.bias.copy_(torch.log(torch.expm1(start)))  # inverse of softplus

    def forward(self, picture: torch.Tensor) -> Regression:
        """Regress (B, 2, x, y)."""
        features = self.features(F.avg_pool2d(picture, self.stem))
        rows = self.profile(features.amax(dim=2))  # the x axis comes first: a row is what is left
        with torch.autocast(picture.device.type, enabled=False):
            features, rows = features.float(), rows.float()
            tilts = self.tilts(rows)
            if self.gain is not None:
                gain = self.gain(torch.cat([tilts, rule_candidates(tilts)], dim=1))
                features = features * (1 + gain)[:, :, None, None]
            maps = F.conv2d(features, self.head.weight[:, :, None, None], self.head.bias)
            raw = maps.mean(dim=(2, 3))
            return Regression(F.softplus(raw), raw, maps, tilts)


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__()
        self.one = _layer(inputs, outputs, dilation=dilation)
        self.two = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return F.relu(x + self.two(self.one(x)))


def rule_candidates(tilts: torch.Tensor) -> torch.Tensor:
    """The angles among which the challenge's rule chooses, from (B, N) tilts; differentiable almost everywhere.

    Returns:
        (B, 6) in the tilts' unit: the largest difference, between p < q; first and p; q and last; the largest of those
        up to p with p, reached at k; the largest of those from q on with q; the largest of those up to k with k.
    """
    count = tilts.shape[1]
    difference = (tilts[:, :, None] - tilts[:, None, :]).abs()
    best = torch.triu(difference, diagonal=1).flatten(1).argmax(dim=1)
    p, q = best // count, best % count
    place = torch.arange(count, device=tilts.device)
    rows = torch.arange(len(tilts), device=tilts.device)
    from_p, from_q = difference[rows, p], difference[rows, q]
    up_to_p = from_p * (place <= p[:, None])
    k = up_to_p.argmax(dim=1)
    up_to_k = difference[rows, k] * (place <= k[:, None])
    after_q = from_q * (place >= q[:, None])
    found = (difference[rows, p, q], from_p[:, 0], from_q[:, -1], up_to_p.amax(1), after_q.amax(1), up_to_k.amax(1))
    return torch.stack(found, dim=1)


def as_picture(vertebra_prob: torch.Tensor) -> torch.Tensor:
    """A mask or soft mask (B, 1, x, y) in the form of an image, so that R takes either."""
    return (4 * vertebra_prob - 1).expand(-1, CHANNELS, -1, -1)


def _layer(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
