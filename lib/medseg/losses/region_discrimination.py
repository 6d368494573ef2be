"""Region discrimination: region k of every image is pulled to the prototype of region k, away from other regions."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def region_vectors(assignment: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """Unit vector of every region, r_{n,k} = normalise(sum_p A_{n,k}(p) v_n(p)).

    One matrix product per image: beside its inputs it takes N x K x D numbers, never N x K x D x pixels.

    Args:
        assignment: (N, K, *grid) soft regions that sum to 1 over K.
        embedding: (N, D, *grid) unit vectors.

    Returns:
        (N, K, D) float32, also under autocast; an empty region gives zeros.
    """
    pixels = math.prod(assignment.shape[2:])
    with torch.autocast(assignment.device.type, enabled=False):
        sums = torch.einsum("nkp,ndp->nkd", assignment.flatten(2).float(), embedding.flatten(2).float())
        return F.normalize(sums / pixels, dim=2, eps=1e-8)


class RegionDiscriminationLoss:
    """L = -1/(N K) sum_{n,k} log softmax_j(r_{n,k} . c_j / tau)[j = k], with c_k = normalise(mean_n r_{n,k}).

    Source: local discrimination card sec. 5.
    Deviation: prototypes may be steadied by a running average (`prototypes`), and regions may count by their mass.

    Args:
        temperature: tau; 0.2 in the released code.
    """

    def __init__(self, temperature: float = 0.2) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature = {temperature} must be positive")
        self.temperature = temperature

    def __call__(
        self, regions: torch.Tensor, prototypes: torch.Tensor | None = None, mass: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss.

        Args:
            regions: (N, K, D) of `region_vectors`.
            prototypes: (K, D) unit vectors; None: those of this batch.
            mass: (N, K) weights of the regions; None: all count alike.
        """
        own = batch_prototypes(regions) if prototypes is None else prototypes
        with torch.autocast(regions.device.type, enabled=False):
            logits = torch.einsum("nkd,jd->nkj", regions.float(), own.float()) / self.temperature
        terms = -F.log_softmax(logits, dim=2).diagonal(dim1=1, dim2=2)
        if mass is None:
            return terms.mean()
        return (terms * mass).sum() / mass.sum().clamp_min(1e-8)


def batch_prototypes(regions: torch.Tensor) -> torch.Tensor:
    """c_k = normalise(mean over images of r_{n,k}): (N, K, D) -> (K, D)."""
    return F.normalize(regions.mean(dim=0), dim=1, eps=1e-8)


def steady_prototypes(regions: torch.Tensor, memory: torch.Tensor, keep: float) -> torch.Tensor:
    """Prototypes of the batch, drawn towards a running average; the gradient flows through the batch's part.

    Args:
        regions: (N, K, D).
        memory: (K, D) running average; zeros where nothing was seen yet.
        keep: share of the memory in [0, 1).
    """
    share = keep if bool(memory.any()) else 0.0
    return F.normalize(share * memory.detach() + (1 - share) * batch_prototypes(regions), dim=1, eps=1e-8)


def assignment_entropy(assignment: torch.Tensor) -> torch.Tensor:
    """Mean binary entropy (base 2) of a soft assignment (N, K, *grid): low where every pixel is decided."""
    p = assignment.float().clamp(1e-6, 1 - 1e-6)
    return -(p * p.log2() + (1 - p) * (1 - p).log2()).mean()


def usage_entropy(assignment: torch.Tensor) -> torch.Tensor:
    """Entropy of the regions' shares of the batch, divided by ln K: 1 where all are used alike, 0 for one region."""
    share = assignment.float().transpose(0, 1).flatten(1).mean(dim=1).clamp_min(1e-8)
    share = share / share.sum()
    return -(share * share.log()).sum() / math.log(assignment.shape[1])
