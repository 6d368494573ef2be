"""S and R as one module."""

from __future__ import annotations

import torch
from torch import nn

from medseg.losses.activation import normalise_maps
from medseg.methods.seg4reg.config import Seg4RegConfig
from medseg.methods.seg4reg.regressor import UNIT, Regression, Regressor
from medseg.methods.seg4reg.segmenter import Segmenter
from medseg.methods.seg4reg.targets import GAP, VERTEBRA
from medseg.networks.domain_norm import convert_batch_norm, domain_view

IMAGE, MASK, SOFT = KINDS = ("image", "mask", "soft")
"""What R looks at: an image, a true mask, what S says of an image."""


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
        self.regressor: Regressor | None = None
        if config.regress:
            self.regressor = Regressor(config.r_width, config.r_stem, config.tilts)
            convert_batch_norm(self.regressor, KINDS if config.segment else [IMAGE])
        self.gated = config.gate
        self.register_buffer("mean_angles", torch.zeros(3))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def regress(self, picture: torch.Tensor, kind: str) -> Regression:
        """R of pictures (B, 2, x, y) of one kind.

        Filters are shared, norms are not.

        Source: Seg4Reg card sec. 2.4: one network with shared weights for image and mask.
        Deviation: batch norms of their own for each kind (Chang et al., arXiv 1906.03950). With common ones, what a
        path is normalised by in use is a mean over pictures of other kinds, by which it was never trained.
        """
        assert self.regressor is not None
        view = domain_view(self.regressor, kind)
        result: Regression = view(picture.to(memory_format=torch.channels_last))
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


def vertebra_prob(logits: torch.Tensor, gap_bias: float = 0.0) -> torch.Tensor:
    """(B, 1, x, y) probability of a vertebra from logits (B, 3, x, y) of S.

    Args:
        logits: background, vertebra, gap.
        gap_bias: added to the logit of the gap. One missed pixel of a gap makes one vertebra of two.
    """
    bias = logits.new_zeros(logits.shape[1], 1, 1)
    bias[GAP] = gap_bias
    return torch.softmax(logits + bias, dim=1)[:, VERTEBRA : VERTEBRA + 1]


def attention_gate(maps: torch.Tensor) -> torch.Tensor:
    """(B, 1, h, w) in [0, 1]: mean of the normalised maps (B, 3, h, w), without gradient. Maps of zeros give zeros."""
    return normalise_maps(maps.detach().float()).mean(dim=1, keepdim=True)
