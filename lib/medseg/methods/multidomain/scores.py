"""Acquisition scores within a domain: how unusual an image is beside the domain's own training images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from medseg.methods.base import Sample, Score, TrainingSet
from medseg.methods.multidomain.terms import one_hot
from medseg.methods.patches import normalised_entropy
from medseg.networks.domain_norm import slot_key

if TYPE_CHECKING:
    from medseg.methods.multidomain.method import MultiDomain

PARTS = ("entropy", "distance", "prior_error")
WORDS = {"entropy": "unsure", "distance": "unlike the training images", "prior_error": "unlikely shape"}
CASES = 4  # ours: training cases of a domain that tell what is usual
WIDER = 4  # ours: images that were learnt from vary less than new ones of the same domain
SLICES = 16  # ours: slices of a volume that are looked at


@torch.no_grad()
def measure(method: MultiDomain, loaded: Sample) -> dict[str, float]:
    """The parts of a score.

    Returns:
        `entropy`: mean over the voxels that may be foreground, in [0, 1]; `distance` from the domain's training images,
        1 is at the border of what is usual; `prior_error`: 1 - Dice between the prediction and what the shape prior
        makes of it, 0 without a prior.
    """
    domain = loaded["domain"]
    network = method.network
    device = next(network.parameters()).device
    image = loaded["image"]
    prob = method.probabilities({**loaded, "image": _some_slices(method, image)})
    near = prob[0] < 0.95
    entropy = normalised_entropy(prob)[0]
    embedding = network.classifier.embed(loaded["views"].to(device)).mean(dim=0)
    return {
        "entropy": float(entropy[near].mean()) if bool(near.any()) else 1.0,
        "distance": network.classifier.distance(domain, embedding),
        "prior_error": _prior_error(method, prob, domain),
    }


def fit_reference(method: MultiDomain, training: TrainingSet) -> None:
    """Keep mean and spread of every part over training cases of each domain."""
    for name in method.registry.names:
        stream = next((s for s in method.streams(training.cases) if s.name == name), None)
        if cases := stream.cases[:CASES] if stream else ():
            rows = [measure(method, training.load(case)) for case in cases]
            values = torch.tensor([[row[part] for part in PARTS] for row in rows])
            usual = method.network.get_buffer(f"usual_{slot_key(name)}")
            usual.copy_(torch.stack([values.mean(0), values.std(0, unbiased=False).clamp_min(0.02)]))


def score(method: MultiDomain, loaded: Sample) -> Score:
    """Each part beside what is usual in the domain, so that the noisiest domain does not take all requests.

    The value is the mean over the parts of the normal distribution function of (part - mean) / (4 spread): 0.5 is an
    image like the domain's training images, 1 one that is unlike all of them, whatever the domain.
    """
    parts = measure(method, loaded)
    mean, spread = method.network.get_buffer(f"usual_{slot_key(loaded['domain'])}").tolist()
    shares = {}
    for index, part in enumerate(PARTS):
        if part != "prior_error" or method.network.prior is not None:
            shares[part] = _below((parts[part] - mean[index]) / (WIDER * spread[index]))
    worst = max(shares, key=lambda part: shares[part])
    value = sum(shares.values()) / len(shares)
    why = f"{WORDS[worst]} for {loaded['domain']}, {parts[worst]:.2f}"
    features = method.network.classifier.embed(loaded["views"].to(_device(method))).mean(dim=0)
    return Score(value, why, parts, tuple(features.tolist()), group=loaded["domain"])


def _prior_error(method: MultiDomain, prob: torch.Tensor, domain: str) -> float:
    """1 - Dice of a prediction (K, *grid) and its reconstruction, over the foreground; 0 without a prior."""
    prior = method.network.prior
    if prior is None:
        return 0.0
    head = domain if method.config.domain_layers else "pooled"
    batch = prob.movedim(-1, 0) if method.config.net_axes == 2 and method.dimension == 3 else prob[None]
    hard = batch.argmax(dim=1, keepdim=True)
    device = next(prior.parameters()).device
    again = prior(one_hot(hard, prob.shape[0]).to(device), head).argmax(dim=1, keepdim=True).cpu()
    common = float(((again == hard) & (hard > 0)).sum())
    total = float((again > 0).sum() + (hard > 0).sum())
    return 1 - 2 * common / total if total else 0.0


def _some_slices(method: MultiDomain, image: torch.Tensor) -> torch.Tensor:
    """Evenly spread slices of a volume, where the network works on slices."""
    if method.config.net_axes == 3 or method.dimension == 2 or image.shape[-1] <= SLICES:
        return image
    return image[..., torch.linspace(0, image.shape[-1] - 1, SLICES).round().long()]


def _below(z: float) -> float:
    """The normal distribution function."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def _device(method: MultiDomain) -> torch.device:
    return next(method.network.parameters()).device
