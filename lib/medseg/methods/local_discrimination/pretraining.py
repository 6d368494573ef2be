"""The loss of pretraining: patch discrimination, mixup and region discrimination over a batch of view pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medseg.losses.patch_discrimination import PatchDiscriminationLoss, mixed_target
from medseg.losses.region_discrimination import (
    RegionDiscriminationLoss,
    assignment_entropy,
    region_vectors,
    steady_prototypes,
    usage_entropy,
)
from medseg.methods.local_discrimination.config import LocalDiscriminationConfig
from medseg.methods.local_discrimination.network import EmbeddingNet

MIX_SHARE = (0.2, 0.8)  # card sec. 5
REGION_LEVEL = 1  # ours: regions are compared at half resolution

Views = dict[str, torch.Tensor]


class Pretraining:
    """Loss terms of one batch.

    L = L_pd + L_mix in stage 1, and 10 L_rd + 0.1 L_ent more in stage 2 (local discrimination card sec. 5).

    Deviation: matched points instead of grid cells; a mixed image is compared with the other views of its two images;
    mixing after normalisation, as images may be of any range; near places of one image are no negatives; a usage term
    keeps regions alive.
    """

    def __init__(self, config: LocalDiscriminationConfig) -> None:
        self.config = config
        self.patch = PatchDiscriminationLoss(config.temperature, config.form)
        self.region = RegionDiscriminationLoss(config.region_temperature)

    def terms(self, network: EmbeddingNet, views: Views, regions: bool) -> dict[str, torch.Tensor]:
        """Weighted terms; `retrieval` among them is a share for people to watch and no loss.

        Args:
            network: in train mode.
            views: batch of `LocalDiscrimination.sample`.
            regions: whether stage 2 has begun.
        """
        config, batch = self.config, views["view_a"].shape[0]
        images = [views["view_a"], views["view_b"]]
        share = views["share"]
        if config.mixup_weight > 0:
            images.append(_mix(views["view_a"], share))
        maps = network.maps(torch.cat(images))
        a, b = (_part(maps, index, batch) for index in (0, 1))
        terms = {}
        first, second = network.vectors_at(a, views["points_a"]), network.vectors_at(b, views["points_b"])
        blocked = near_places(views["places"], views["case"], config.ignore)
        terms["patch"] = config.patch_weight * self.patch(
            first.flatten(0, 1), second.flatten(0, 1), views["valid"].flatten(), blocked
        )
        if config.mixup_weight > 0:
            mixed = network.vectors_at(_part(maps, 2, batch), views["pixels"])
            terms["mixup"] = config.mixup_weight * self._mixup(mixed, b, network, views)
        if regions and config.region_weight > 0:
            terms.update(self._regions(network, [level[: 2 * batch] for level in maps]))
        with torch.no_grad():
            terms["retrieval"] = retrieval(first, second, views["valid"])
        return terms

    def _mixup(
        self, mixed: torch.Tensor, maps: Sequence[torch.Tensor], network: EmbeddingNet, views: Views
    ) -> torch.Tensor:
        """Vectors of the mixed image against the mix of both images' vectors, read in their other views.

        In the same view a network gets away with telling where in the crop it is, which its padding gives away.
        """
        own = network.vectors_at(maps, views["partners"])
        target = mixed_target(own, own.roll(1, 0), views["share"])
        valid = views["shown"] & views["shown"].roll(1, 0)
        return self.patch(mixed.flatten(0, 1), target.flatten(0, 1), valid.flatten())

    def _regions(self, network: EmbeddingNet, maps: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        config = self.config
        vectors, assignment = network.dense(maps, REGION_LEVEL)
        found = region_vectors(assignment, vectors)
        prototypes = steady_prototypes(found, network.prototypes, config.prototype_memory)
        with torch.no_grad():
            network.prototypes.copy_(prototypes)
        return {
            "region": config.region_weight * self.region(found, prototypes),
            "entropy": config.entropy_weight * assignment_entropy(assignment),
            "usage": config.usage_weight * (1 - usage_entropy(assignment)),
        }


def near_places(places: torch.Tensor, case: torch.Tensor, radius: float) -> torch.Tensor:
    """Which pairs of places are the same for the loss: of one image and nearer than `radius`.

    Args:
        places: (B, M, axes) in image voxels.
        case: (B,) number of the image.
        radius: image voxels.

    Returns:
        (B * M, B * M) bool.
    """
    flat = places.flatten(0, 1)
    image = case.repeat_interleave(places.shape[1])
    return (torch.cdist(flat, flat) < radius) & (image[:, None] == image[None])


def retrieval(first: torch.Tensor, second: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Share of points whose nearest vector in the other view of the same image is their own partner.

    Args:
        first: (B, M, D).
        second: (B, M, D).
        valid: (B, M) bool.
    """
    with torch.autocast(first.device.type, enabled=False):
        similarity = torch.einsum("bmd,bnd->bmn", first, second).masked_fill(~valid[:, None], -2.0)
    right = similarity.argmax(dim=2) == torch.arange(first.shape[1], device=first.device)
    return (right & valid).float().sum() / valid.float().sum().clamp_min(1.0)


def _part(maps: Sequence[torch.Tensor], index: int, batch: int) -> list[torch.Tensor]:
    return [level[index * batch : (index + 1) * batch] for level in maps]


def _mix(view: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    weight = share.reshape(-1, *(1,) * (view.ndim - 1)).to(view.dtype)
    return weight * view + (1 - weight) * view.roll(1, 0)
