"""S: background, vertebra or gap for every pixel, with an encoder that activation maps of R can enhance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from medseg.methods.seg4reg.picture import CHANNELS
from medseg.networks.trunk import Trunk, pad_to_multiple, without_padding

CLASSES = 3
GATED = (2, 3)
"""Levels of the encoder that are gated: 8 and 16 pixels per cell at the default stem; a map of R has 16."""


class Segmenter(Trunk):
    """A U-Net whose first layer gathers stem x stem pixels into channels, and whose last one spreads them again.

    Source: 2D U-Net family, Seg4Reg card sec. 2.3.
    Deviation: the full grid is seen and predicted, but all layers work at half of it, which costs a quarter.

    Args:
        widths: channels from fine to coarse.
        stem: pixels per side gathered.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 96, 128, 160), stem: int = 2) -> None:
        super().__init__()
        self.stem = stem
        inputs = [CHANNELS * stem**2, *widths[:-1]]
        self.encoder = nn.ModuleList(_block(i, o) for i, o in zip(inputs, widths, strict=True))
        self.decoder = nn.ModuleList(_block(fine + coarse, fine) for fine, coarse in itertools.pairwise(widths))
        self.widths = tuple(widths[:-1])
        self.strides = tuple((stem * 2**level,) * 2 for level in range(len(widths) - 1))
        self.output = nn.Conv2d(widths[0], CLASSES * stem**2, 1)

    def forward(self, image: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, 3, x, y) of (B, 2, x, y); both axes are multiples of `stem * 2 ** (levels - 1)`.

        Args:
            image: to segment.
            gate: (B, 1, h, w) in [0, 1]; features f of the gated levels become f (1 + gate). None: as they are.
        """
        return F.pixel_shuffle(self.output(self._decoded(image, gate)[0]), self.stem)

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """As `Trunk.maps`, of both contrasts (B, 2, x, y)."""
        padded = pad_to_multiple(image, (2 * self.strides[-1][0],) * 2)
        return without_padding(self._decoded(padded, None), image.shape[2:], self.strides)

    def _decoded(self, image: torch.Tensor, gate: torch.Tensor | None) -> list[torch.Tensor]:
        """The decoder's maps, fine to coarse."""
        x = F.pixel_unshuffle(image, self.stem)
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            if gate is not None and level in GATED:
                x = x * (1 + F.interpolate(gate, x.shape[2:], mode="bilinear", align_corners=False)).to(x.dtype)
            skips.append(x)
        found = []
        for level in reversed(range(len(self.decoder))):
            up = F.interpolate(x, skips[level].shape[2:], mode="nearest")
            x = self.decoder[level](torch.cat([skips[level], up], dim=1))
            found.append(x)
        return found[::-1]


def growing_widths(width: int) -> tuple[int, ...]:
    """Channels of the five levels: the finest, and as many more at each level (the default has 32)."""
    return tuple(width * level for level in range(1, 6))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in (inputs, outputs):
        layers += [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
