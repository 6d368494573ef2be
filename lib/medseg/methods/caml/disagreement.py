"""How much two branches disagree on an image: the acquisition score of CAML."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F


@dataclass(frozen=True)
class Disagreement:
    """Summary over V's dilated foreground, every number in [0, 1]; all of them 1 where V finds none.

    Attributes:
        divergence: mean Jensen-Shannon divergence of the branches, in bits.
        divergence_95: its 95th percentile.
        entropy: mean entropy of the branches' average, over ln K.
        entropy_95: its 95th percentile.
        empty: V, whose prediction is the model's, finds no foreground.
    """

    divergence: float
    divergence_95: float
    entropy: float
    entropy_95: float
    empty: bool = False

    @property
    def value(self) -> float:
        """Mean of the four numbers: divergence and entropy, typical and extreme, weigh the same."""
        return (self.divergence + self.divergence_95 + self.entropy + self.entropy_95) / 4

    @property
    def why(self) -> str:
        """The value and its two halves, whose mean it is, as a phrase."""
        if self.empty:
            return f"the model finds nothing, {self.value:.2f}"
        divergence, entropy = (self.divergence + self.divergence_95) / 2, (self.entropy + self.entropy_95) / 2
        return f"uncertain, {self.value:.2f} (disagreement {divergence:.2f}, entropy {entropy:.2f})"


def disagreement(prob_v: torch.Tensor, prob_a: torch.Tensor, radius: int = 2) -> Disagreement:
    """Compare two probability maps (K, *grid), background first.

    Only voxels within `radius` of V's predicted foreground count, so that large and small organs rank alike and empty
    surroundings do not dilute the score (CAML card sec. 9).
    """
    zone = dilate(prob_v.argmax(dim=0) > 0, radius)
    if not bool(zone.any()):
        return Disagreement(1.0, 1.0, 1.0, 1.0, empty=True)
    v, a = prob_v[:, zone], prob_a[:, zone]
    divergence = jensen_shannon(v, a).numpy()
    entropy = (_entropy(0.5 * (v + a)) / math.log(v.shape[0])).clamp(0, 1).numpy()
    return Disagreement(*_mean_and_tail(divergence), *_mean_and_tail(entropy))


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence in bits of distributions (K, ...) over K: (...), in [0, 1]."""
    nats = _entropy(0.5 * (p + q)) - 0.5 * (_entropy(p) + _entropy(q))
    return (nats / math.log(2)).clamp(0, 1)


def dilate(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Binary dilation of a (*grid) mask by a cube of edge 2 radius + 1."""
    pool = F.max_pool3d if mask.ndim == 3 else F.max_pool2d
    return pool(mask[None, None].float(), 2 * radius + 1, stride=1, padding=radius)[0, 0] > 0


def _mean_and_tail(values: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and 95th percentile."""
    return float(values.mean(dtype=np.float64)), float(np.percentile(values, 95))


def _entropy(p: torch.Tensor) -> torch.Tensor:
    """Entropy in nats over the first axis."""
    return -(p * p.clamp_min(1e-12).log()).sum(dim=0)
