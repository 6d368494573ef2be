"""What is done after the last iteration: statistics of the norms, and where each domain lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medseg.cases import Case
from medseg.methods.base import Sample, TrainingSet
from medseg.methods.multidomain.network import POOLED, MultiDomainNet
from medseg.networks.domain_norm import domain_slots

if TYPE_CHECKING:
    from medseg.methods.multidomain.method import MultiDomain


def encoder_parameters(network: MultiDomainNet) -> list[nn.Parameter]:
    """Parameters of the first half of the backbone: of its encoder, or of its levels on the way down."""
    names = ("encoder", "conv_0", "down_")
    return [p for name, p in network.backbone.named_parameters() if name.startswith(names)]


@torch.no_grad()
def renew_statistics(method: MultiDomain, training: TrainingSet) -> None:
    """Mean and variance of every norm over whole slices of the training cases, domain by domain.

    During training the statistics follow augmented crops around the foreground; what is predicted are whole slices.
    """
    network = method.network
    for stream in method.streams(training.cases):
        layers: Sequence[nn.Module] = (
            domain_slots(network.backbone, stream.name)
            if stream.name != POOLED
            else [module for module in network.backbone.modules() if isinstance(module, _BatchNorm)]
        )
        norms = [layer for layer in layers if isinstance(layer, _BatchNorm)]
        if not norms or not method.config.norm_batches:
            continue
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for images in _batches(method, training, stream.cases, stream.per_batch):
            network.with_features(images, stream.name)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


@torch.no_grad()
def fit_classifier(method: MultiDomain, training: TrainingSet) -> None:
    """Let the classifier know where the training images of each domain lie."""
    network, device = method.network, next(method.network.parameters()).device
    embeddings: dict[str, list[torch.Tensor]] = {}
    for case in training.cases:
        if case.label is not None:
            loaded = training.load(case)
            views = method.views(loaded["image"])
            embeddings.setdefault(loaded["domain"], []).append(network.classifier.embed(views.to(device)))
    for domain, found in embeddings.items():
        network.classifier.fit(domain, torch.cat(found))


def _batches(method: MultiDomain, training: TrainingSet, cases: Sequence[Case], size: int) -> Iterator[torch.Tensor]:
    """Batches of whole slices (or of patches, in 3D) from the cases in turn, without augmentation."""
    device = next(method.network.parameters()).device
    generator = torch.Generator().manual_seed(method.config.seed)
    for number in range(method.config.norm_batches):
        loaded = [training.load(cases[(number * size + i) % len(cases)]) for i in range(size)]
        if method.config.net_axes == 3:
            drawn = [method.draw(item, None, generator, strong=False, foreground=0.0)["image"] for item in loaded]
            yield torch.stack(drawn).to(device)
        else:
            yield _whole_slices(loaded, method.dimension, generator).to(device)


def _whole_slices(loaded: Sequence[Sample], dimension: int, generator: torch.Generator) -> torch.Tensor:
    """One random slice of every case (B, C, H, W), zeros at the far ends of the smaller ones."""
    slices = []
    for item in loaded:
        image = item["image"].as_tensor()
        depth = image.shape[-1]
        index = int(torch.randint(depth, (1,), generator=generator))
        slices.append(image[..., index] if dimension == 3 else image)
    height, width = (-(-max(s.shape[axis] for s in slices) // 16) * 16 for axis in (1, 2))
    return torch.stack([nn.functional.pad(s, [0, width - s.shape[2], 0, height - s.shape[1]]) for s in slices])
