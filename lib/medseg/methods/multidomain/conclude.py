"""What is done after the last iteration: statistics of the norms, and where each domain lies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medseg.methods.base import Sample, Stream, TrainingSet
from medseg.methods.multidomain.network import POOLED, MultiDomainNet
from medseg.methods.multidomain.views import vary
from medseg.networks.domain_norm import domain_slots

if TYPE_CHECKING:
    from medseg.methods.multidomain.method import MultiDomain

VARIED = 8  # ours: varied copies of each training image by which the classifier learns how far a domain reaches


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
    streams = method.streams(training.cases)
    own = method.config.domain_layers
    for name, members in [(stream.name, [stream]) for stream in streams] if own else [(POOLED, streams)]:
        layers: Iterable[nn.Module] = domain_slots(network.backbone, name) if own else network.backbone.modules()
        norms = [layer for layer in layers if isinstance(layer, _BatchNorm)]
        if not norms or not method.config.norm_batches:
            continue
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for images in _batches(method, training, members, name if own else None):
            network.with_features(images, name)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


@torch.no_grad()
def fit_classifier(method: MultiDomain, training: TrainingSet) -> None:
    """Let the classifier know where each domain lies: by its training images, and by varied ones for new patients.

    Where not all old domains are there to rehearse, the classifier was fixed: they keep their place, and the rows of
    the new ones are found here.
    """
    network, device = method.network, next(method.network.parameters()).device
    kept = method.old_domains if method.missing_domains(training.cases) else ()
    generator = torch.Generator().manual_seed(method.config.seed)
    embeddings: dict[str, list[torch.Tensor]] = {}
    for case in training.cases:
        if case.label is not None and (loaded := training.load(case))["domain"] not in kept:
            views = [loaded["views"], *(vary(loaded["views"], generator) for _ in range(VARIED))]
            found = embeddings.setdefault(loaded["domain"], [])
            found += [network.classifier.embed(each.to(device)) for each in views]
    for domain, images in embeddings.items():
        network.classifier.fit(domain, images)
    told = list(kept)
    for domain, images in embeddings.items() if kept else ():
        network.classifier.fit_row(domain, images, told)
        told.append(domain)


def _batches(
    method: MultiDomain, training: TrainingSet, streams: Sequence[Stream], domain: str | None
) -> Iterator[torch.Tensor]:
    """Batches of whole slices (or of a domain's patches, in 3D) from the cases of each stream in turn, as they are."""
    device = next(method.network.parameters()).device
    generator = torch.Generator().manual_seed(method.config.seed)
    for number in range(method.config.norm_batches):
        turns = [(s.cases, number * s.per_batch + i) for s in streams for i in range(s.per_batch)]
        loaded = [training.load(cases[turn % len(cases)]) for cases, turn in turns]
        if method.config.net_axes == 3:
            drawn = [method.draw(item, domain, generator, strong=False, foreground=0.0)["image"] for item in loaded]
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
