"""Heat maps of landmarks: a network that learns them from what the templates found on unmarked images."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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

VOXELS = 2**15  # ours: about as many has a map, as whole images are looked at
BATCH = {2: 4, 3: 1}  # ours: views per iteration
RATE = 3e-3  # ours: as the pretraining with the CPU preset
SIGMA = 1.5  # ours: of a landmark's blob, voxels of the map
MARKED = 0.1  # ours: least share of marked images among those that are drawn
SURE = 0.7  # ours: share of the matches, the most confident for each landmark, that are learnt from
TAIL = 5.0  # ours: distance from the templates' find at which a map counts half, voxels of the map
RADIUS = 4  # ours: the blob around the peak whose centre is the landmark
SMALLEST = 32  # voxels of a map along an axis; the border is repeated until there are so many
WATCH = 50  # iterations between lines of the log


@dataclass(frozen=True)
class Example:
    """An image to learn from, at the scale of the maps, see `HeatMaps.example`.

    Attributes:
        image: (C, *small).
        points: (L, axes) voxels of it.
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

    Until it is trained it has no network, and a file need not have one.

    Source: local discrimination card sec. 8 names a self-trained heat-map network; all of its form is ours.

    Args:
        channels: of the images.
        landmarks: L.
        axes: 2 or 3.
        width: of the V-Net.
        norm: of the V-Net; as the trunk that it starts from.
    """

    def __init__(self, channels: int, landmarks: int, axes: int, width: int, norm: str = "instance") -> None:
        super().__init__()
        self.axes = axes
        self.build = partial(VNet, channels, landmarks, spatial_dims=axes, width=width, norm=norm, dropout=0.0)
        self.net: VNet | None = None
        self.register_buffer("factor", torch.ones(()))
        self.factor: torch.Tensor

    def _load_from_state_dict(self, state: dict[str, torch.Tensor], prefix: str, *rest: Any) -> None:
        state.setdefault(f"{prefix}factor", torch.ones(()))
        if self.net is None and any(name.startswith(f"{prefix}net.") for name in state):
            self.net = self._frozen(self.build())
        super()._load_from_state_dict(state, prefix, *rest)

    @property
    def ready(self) -> bool:
        """Whether it has been trained."""
        return self.net is not None

    def look_at(self, grid: Sequence[int]) -> None:
        """Set the scale of the maps by the grid of an image like those that will come."""
        self.factor.fill_(max(1.0, (math.prod(grid) / VOXELS) ** (1 / self.axes)))

    def example(self, image: MetaTensor, points: torch.Tensor, trust: torch.Tensor, marked: bool = False) -> Example:
        """An image (C, *grid) and points in its voxels, at the scale of the maps."""
        small = self._shrink(image)
        ratio = torch.tensor(small.shape[1:]) / torch.tensor(image.shape[1:])
        return Example(small, (points + 0.5) * ratio - 0.5, trust, marked)

    @torch.no_grad()
    def find(self, image: MetaTensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Landmarks of an image (C, *grid).

        Args:
            image: the image.
            near: (L, axes) where the templates find them, voxels of the image. A map counts the less, the farther from
                there, with a long tail: the one image in which a map has its peak elsewhere is not lost, nor is the
                image in which the templates were wrong.

        Returns:
            Points (L, axes) in voxels of the image, and (L,) the share of each map that lies around its point.
        """
        assert self.net is not None
        small = self._shrink(image)
        size = small.shape[1:]
        pads = [side for n in reversed(size) for side in (0, max(0, SMALLEST - n))]
        wide = F.pad(small[None], pads, mode="replicate").to(self.factor.device)
        with torch.autocast(self.factor.device.type, enabled=False):
            logits = self.net(wide)[0][(slice(None), *(slice(n) for n in size))]
        ratio = near.new_tensor(image.shape[1:]) / near.new_tensor(size)
        apart = torch.cdist((near + 0.5) / ratio - 0.5, voxels(size, near)).reshape(logits.shape)
        chance = torch.softmax((logits - torch.log1p((apart / TAIL) ** 2)).flatten(1), dim=1).reshape(logits.shape)
        found = [centre(plane, peak) for plane, peak in zip(chance, highest(chance).round(), strict=True)]
        points, mass = (torch.stack(part) for part in zip(*found, strict=True))
        return (points + 0.5) * ratio - 0.5, mass

    def fit(self, examples: Sequence[Example], trunk: nn.Module, iterations: int, seed: int) -> None:
        """Learn from marked images and from finds, starting from a pretrained trunk.

        Where the loss is no number, nothing is kept.

        Args:
            examples: at least one.
            trunk: a V-Net of the same form but for its head.
            iterations: of 4 views each, 1 in 3D; 0 leaves everything as it is.
            seed: of the head and of the views.
        """
        if not iterations:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = self.build()
        weights = {name: value for name, value in trunk.state_dict().items() if not name.startswith("head.")}
        net.load_state_dict(weights | {f"head.{name}": value for name, value in net.head.state_dict().items()})
        net = net.to(self.factor.device).train()
        settings, generator = _views(examples), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        log.info("heat maps of the landmarks: %d iterations on %d images", iterations, len(examples))
        with torch.enable_grad(), torch.autocast(self.factor.device.type, enabled=False):
            for iteration in range(1, iterations + 1):
                loss = _loss(net, [draw(examples, settings, generator) for _ in range(BATCH[self.axes])])
                if not bool(torch.isfinite(loss)):
                    log.warning("heat maps: the loss is %s at iteration %d; left out", loss.item(), iteration)
                    return
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                if iteration % WATCH == 0 or iteration == iterations:
                    log.info("heat maps: iteration %d/%d: loss %.3f", iteration, iterations, loss.item())
        self.net = self._frozen(net)

    def _frozen(self, net: VNet) -> VNet:
        """In eval mode, and no business of the pretraining's optimizer."""
        return net.to(self.factor.device).requires_grad_(False).eval()

    def _shrink(self, image: MetaTensor) -> torch.Tensor:
        return resize(image, [max(1, round(n / float(self.factor))) for n in image.shape[1:]]).as_tensor()


def _views(examples: Sequence[Example]) -> ViewSettings:
    """Views that show most of an image."""
    grid = [max(e.image.shape[axis] for e in examples) for axis in range(1, examples[0].image.ndim)]
    patch = tuple(max(SMALLEST, 16 * round(n / 16)) for n in grid)
    return ViewSettings(patch, (0.85, 1.2), scaling=0.1, rotation=12.0, mirror=0.0, elastic=0.06, shift=0.12)


def _loss(net: nn.Module, drawn: Sequence[Example]) -> torch.Tensor:
    """Cross-entropy between each landmark's map, as a distribution over places, and a Gaussian around its point."""
    device = next(net.parameters()).device
    logits = net(torch.stack([e.image for e in drawn]).to(device)).float()
    points = torch.stack([e.points for e in drawn]).to(device)
    trust = torch.stack([e.trust for e in drawn]).to(device)
    target = blobs(points, logits.shape[2:]).flatten(2)
    entropy = -(target * torch.log_softmax(logits.flatten(2), dim=2)).sum(dim=2)
    return (entropy * trust).sum() / trust.sum().clamp_min(1e-6)


def centre(plane: torch.Tensor, peak: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre of mass of a map (*grid) around its peak (axes,), and the mass there; nothing lies outside the map."""
    blob = cut(plane[None], peak, RADIUS).flatten()
    places = voxels((2 * RADIUS + 1,) * plane.ndim, peak) + peak - RADIUS
    inside = ((places >= 0) & (places <= peak.new_tensor(plane.shape) - 1)).all(dim=1)
    blob = blob * inside
    return (places * blob[:, None]).sum(dim=0) / blob.sum().clamp_min(1e-9), blob.sum()


def draw(examples: Sequence[Example], settings: ViewSettings, generator: torch.Generator) -> Example:
    """A view of one of the images; landmarks that it does not show have no weight."""
    marked = [e for e in examples if e.marked]
    often = marked and float(torch.rand(1, generator=generator)) < MARKED
    pool = marked if often else examples
    chosen = pool[int(torch.randint(len(pool), (1,), generator=generator))]
    grid = chosen.image.shape[1:]
    view, _ = draw_views(grid, (torch.tensor(grid) - 1) / 2, settings, generator)
    image = vary_appearance(view.render(chosen.image), 1.0, generator, chosen.image.shape[0] > 1)
    points = view.from_image(chosen.points)
    shown = ((points >= 0) & (points <= torch.tensor(settings.patch) - 1.0)).all(dim=1)
    return Example(image, points, chosen.trust * shown, chosen.marked)


def trusted(confidence: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Weights of finds: their confidence, 0 for the least confident ones of each landmark; the mean is 1.

    Args:
        confidence: (images, L) in [0, 1].
        known: (L,) bool: landmarks that a template has; others have no weight.
    """
    keep = max(1, round(SURE * len(confidence)))
    kept = torch.zeros_like(confidence).scatter_(0, confidence.topk(keep, dim=0).indices, 1.0)
    weights = kept * confidence.clamp_min(0.05) * known
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
