"""Heat maps of landmarks: a network that learns them from what the templates found on unmarked images."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.data import MetaTensor
from torch import nn
from torch.nn import functional as F

from medseg.methods.local_discrimination.appearance import vary_appearance
from medseg.methods.local_discrimination.matching import cut, highest, voxels
from medseg.methods.local_discrimination.views import ViewSettings, draw_views
from medseg.networks.vnet import VNet
from medseg.transforms.grid import resize

log = logging.getLogger(__name__)

VOXELS = {2: 2**15, 3: 2**17}  # ours: about as many has a map, as whole images are looked at
BATCH = {2: 4, 3: 2}  # ours: views per iteration
RATE = 3e-3  # ours: as the pretraining with the CPU preset
SIGMA = 1.5  # ours: of a landmark's blob, voxels of the map
MARKED = 0.1  # ours: least share of marked images among those that are drawn
SURE = 0.7  # ours: share of the matches, the most confident for each landmark, that are learnt from
RADIUS = 4  # ours: the blob around the peak whose centre is the landmark
WATCH = 50  # iterations between lines of the log


@dataclass(frozen=True)
class Example:
    """An image to learn from.

    Attributes:
        image: (C, *grid) on the network's grid.
        points: (L, axes) voxels.
        trust: (L,) weight of each landmark; 0: unknown.
        marked: whether a person marked it.
    """

    image: torch.Tensor
    points: torch.Tensor
    trust: torch.Tensor
    marked: bool = False


class HeatMaps(nn.Module):
    """A V-Net that looks at the whole image, coarsely, and answers with one map per landmark.

    What templates find on one image is noisy; what a network can predict for many images at once is what these finds
    have in common. It is trained on turned, warped and re-lit views, on the finds alone, and so needs no more marks.

    Source: local discrimination card sec. 8 names a self-trained heat-map network; all of its form is ours.

    Args:
        channels: of the images.
        landmarks: L.
        axes: 2 or 3.
        width: of the V-Net.
    """

    def __init__(self, channels: int, landmarks: int, axes: int, width: int) -> None:
        super().__init__()
        self.net = VNet(channels, landmarks, spatial_dims=axes, width=width, norm="instance", dropout=0.0)
        self.requires_grad_(False)  # the pretraining does not touch it
        self.register_buffer("factor", torch.zeros(()))
        self.factor: torch.Tensor

    @property
    def ready(self) -> bool:
        """Whether it has been trained."""
        return bool(self.factor > 0)

    @torch.no_grad()
    def find(self, image: MetaTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Landmarks of an image (C, *grid).

        Returns:
            Points (L, axes) in voxels of the image, and (L,) the share of each map that lies around its point.
        """
        grid = image.shape[1:]
        small = resize(image, [max(32, round(n / float(self.factor))) for n in grid]).as_tensor()
        with torch.autocast(self.factor.device.type, enabled=False):
            logits = self.net(small[None].to(self.factor.device))[0]
        chance = torch.softmax(logits.flatten(1), dim=1).reshape(logits.shape)
        points, mass = [], []
        for plane, peak in zip(chance, highest(chance).round(), strict=True):
            blob = cut(plane[None], peak, RADIUS).flatten()
            places = voxels((2 * RADIUS + 1,) * len(grid), peak) + peak - RADIUS
            mass.append(blob.sum().clamp(max=1.0))
            points.append((places * blob[:, None]).sum(dim=0) / blob.sum().clamp_min(1e-9))
        ratio = points[0].new_tensor(grid) / points[0].new_tensor(logits.shape[1:])
        return (torch.stack(points) + 0.5) * ratio - 0.5, torch.stack(mass)

    def fit(self, examples: Sequence[Example], trunk: nn.Module, iterations: int, seed: int) -> None:
        """Learn from marked images and from finds, starting from a pretrained trunk.

        Args:
            examples: at least one.
            trunk: a V-Net whose weights have the same names and shapes, the head apart.
            iterations: of 4 views each, 2 in 3D; 0 leaves everything as it is.
            seed: of the views.
        """
        if not iterations:
            return
        weights = {name: value for name, value in trunk.state_dict().items() if not name.startswith("head.")}
        self.net.load_state_dict(weights, strict=False)
        grid = [
            sum(e.image.shape[1 + axis] for e in examples) / len(examples)
            for axis in range(examples[0].points.shape[1])
        ]
        self.factor.fill_(max(1.0, (math.prod(grid) / VOXELS[len(grid)]) ** (1 / len(grid))))
        settings = self._views(grid)
        generator = torch.Generator().manual_seed(seed)
        self.net.requires_grad_(True).train()
        optimizer = torch.optim.Adam(self.net.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        log.info("heat maps of the landmarks: %d iterations on %d images", iterations, len(examples))
        with torch.enable_grad(), torch.autocast(self.factor.device.type, enabled=False):
            for iteration in range(1, iterations + 1):
                loss = self._loss([draw(examples, settings, generator) for _ in range(BATCH[len(grid)])])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                if iteration % WATCH == 0 or iteration == iterations:
                    log.info("heat maps: iteration %d/%d: loss %.3f", iteration, iterations, loss.item())
        self.net.requires_grad_(False).eval()

    def _views(self, grid: Sequence[float]) -> ViewSettings:
        """Views that show most of an image, at about the scale at which it will be looked at."""
        factor = float(self.factor)
        patch = tuple(max(32, 16 * round(n / factor / 16)) for n in grid)
        zoom = (0.85 * factor, 1.2 * factor)
        return ViewSettings(patch, zoom, scaling=0.1, rotation=12.0, mirror=0.0, elastic=0.06, shift=0.12)

    def _loss(self, drawn: Sequence[Example]) -> torch.Tensor:
        """Cross-entropy between each landmark's map, as a distribution over places, and a Gaussian around its point."""
        device = self.factor.device
        logits = self.net(torch.stack([e.image for e in drawn]).to(device)).float()
        points = torch.stack([e.points for e in drawn]).to(device)
        trust = torch.stack([e.trust for e in drawn]).to(device)
        target = blobs(points, logits.shape[2:]).flatten(2)
        entropy = -(target * torch.log_softmax(logits.flatten(2), dim=2)).sum(dim=2)
        return (entropy * trust).sum() / trust.sum().clamp_min(1e-6)


def draw(examples: Sequence[Example], settings: ViewSettings, generator: torch.Generator) -> Example:
    """A view of one of the images; landmarks that it does not show have no weight."""
    marked = [e for e in examples if e.marked]
    often = marked and float(torch.rand(1, generator=generator)) < MARKED
    pool = marked if often else examples
    chosen = pool[int(torch.randint(len(pool), (1,), generator=generator))]
    grid = chosen.image.shape[1:]
    view, _ = draw_views(grid, (torch.tensor(grid) - 1) / 2, settings, generator)
    image = vary_appearance(view.render(chosen.image), 1.0, generator, chosen.image.shape[0] == 3)
    points = view.from_image(chosen.points)
    shown = ((points >= 0) & (points <= torch.tensor(settings.patch) - 1.0)).all(dim=1)
    return Example(image, points, chosen.trust * shown, chosen.marked)


def trusted(confidence: torch.Tensor) -> torch.Tensor:
    """Weights of finds: their confidence, 0 for the least confident ones of each landmark; the mean is 1.

    Args:
        confidence: (images, L) in [0, 1].
    """
    keep = max(1, round(SURE * len(confidence)))
    kept = torch.zeros_like(confidence).scatter_(0, confidence.topk(keep, dim=0).indices, 1.0)
    weights = kept * confidence.clamp_min(0.05)
    return weights / weights.mean().clamp_min(1e-6)


def blobs(points: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Gaussians of sum 1 around points (B, L, axes): (B, L, *grid)."""
    found = points.new_ones(*points.shape[:2], *(1,) * len(grid))
    for axis, count in enumerate(grid):
        places = torch.arange(count, dtype=points.dtype, device=points.device)
        bell = F.softmax(-((places - points[..., axis, None]) ** 2) / (2 * SIGMA**2), dim=-1)
        shape = [*points.shape[:2], *(count if other == axis else 1 for other in range(len(grid)))]
        found = found * bell.reshape(shape)
    return found
