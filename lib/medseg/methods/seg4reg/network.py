"""S and R as one module."""

from __future__ import annotations

import torch
from torch import nn

from medseg.losses.activation import normalise_maps
from medseg.methods.seg4reg.config import Seg4RegConfig
from medseg.methods.seg4reg.regressor import UNIT, Regression, Regressor
from medseg.methods.seg4reg.segmenter import Segmenter


class Seg4RegNetwork(nn.Module):
    """Both networks, and the mean angles of the training cases as the answer of last resort.

    Attributes:
        segmenter: S; None where the config leaves it out.
        regressor: R; None where the config leaves it out.
        mean_angles: (3,) degrees.
    """

    mean_angles: torch.Tensor

    def __init__(self, config: Seg4RegConfig) -> None:
        super().__init__()
        self.segmenter = Segmenter(config.s_widths, config.s_stem) if config.segment else None
        self.regressor = Regressor(config.r_width, config.r_stem, config.tilts) if config.regress else None
        self.gated = config.gate
        self.register_buffer("mean_angles", torch.zeros(3))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def regress(self, picture: torch.Tensor) -> Regression:
        """R of images or masks (B, 2, x, y)."""
        assert self.regressor is not None
        result: Regression = self.regressor(picture.to(memory_format=torch.channels_last))
        return result

    def segment(self, image: torch.Tensor, regression: Regression | None = None) -> torch.Tensor:
        """Logits (B, 3, x, y) of S, its encoder enhanced where R looked at the image.

        Source: Seg4Reg card sec. 6, f <- f (1 + upsampled N(A(x))); the image's maps, because a test image has no mask.
        Deviation: the mean of the three maps, detached: S must not teach R where to look by way of the gate.
        """
        assert self.segmenter is not None
        gate = attention_gate(regression.maps) if self.gated and regression is not None else None
        logits: torch.Tensor = self.segmenter(image.to(memory_format=torch.channels_last), gate)
        return logits.float()

    def degrees(self, regression: Regression) -> torch.Tensor:
        """(B, 3) degrees."""
        return regression.angles * UNIT


def attention_gate(maps: torch.Tensor) -> torch.Tensor:
    """(B, 1, h, w) in [0, 1]: mean of the normalised maps (B, 3, h, w), without gradient. Maps of zeros give zeros."""
    return normalise_maps(maps.detach().float()).mean(dim=1, keepdim=True)
