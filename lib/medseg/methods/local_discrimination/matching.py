"""Finding landmarks by the windows of embedding vectors around them: coarse to fine, with a confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from torch import nn
from torch.nn import functional as F

from medseg.methods.local_discrimination.network import EmbeddingNet, read_at
from medseg.transforms.grid import resize

REACH = 1.5  # ours: radius of a window in its sigma
LOCAL = 5  # ours: radius of a finer search, voxels of the coarser level
CARRIED = 1.0  # ours: weight of the coarser levels' response in a finer one
CYCLE = 2.0  # ours: cycle error, in voxels, at which confidence falls to 0.6


@dataclass(frozen=True)
class Found:
    """Landmarks of one image.

    Attributes:
        points: (L, axes) voxels of the network's grid.
        confidence: (L,) in [0, 1].
        cycle: (L,) forward-backward error in voxels of the finest level.
    """

    points: torch.Tensor
    confidence: torch.Tensor
    cycle: torch.Tensor


class TemplateBank(nn.Module):
    """Windows of embedding vectors around the landmarks of the templates, at every level of the pyramid.

    Empty until `clear` gives it slots, so that the checkpoints of a training do not carry it; a file brings its own
    number. Half precision: vectors have length 1. With the defaults (3 levels, D = 32, 9 slots) a landmark takes
    1.9 MB in 2D and 8.5 MB in 3D.

    Args:
        landmarks: number of names L.
        axes: 2 or 3.
        embedding: length of the vectors D.
        pyramid: factors, coarse to fine.
        window: sigma of the Gaussian window in voxels of each level.
    """

    def __init__(self, landmarks: int, axes: int, embedding: int, pyramid: Sequence[int], window: float) -> None:
        super().__init__()
        self.radius = max(1, math.ceil(REACH * window))
        self.pyramid, self.window = tuple(pyramid), window
        side = 4 * self.radius + 1  # twice as wide as the window, so that a backward search has room
        shape = (len(self.pyramid), 0, landmarks, embedding, *(side,) * axes)
        self.register_buffer("patches", torch.zeros(shape, dtype=torch.float16))
        self.register_buffer("places", torch.zeros(0, landmarks, axes))
        self.register_buffer("known", torch.zeros(0, landmarks, dtype=torch.bool))
        self.patches: torch.Tensor
        self.places: torch.Tensor
        self.known: torch.Tensor

    def clear(self, slots: int) -> None:
        """Forget everything and make room for so many templates T."""
        levels, _, *window = self.patches.shape
        self.patches = self.patches.new_zeros(levels, slots, *window)
        self.places = self.places.new_zeros(slots, *self.places.shape[1:])
        self.known = self.known.new_zeros(slots, self.known.shape[1])

    def _load_from_state_dict(self, state: dict[str, torch.Tensor], prefix: str, *rest: Any) -> None:
        if f"{prefix}known" in state:
            self.clear(state[f"{prefix}known"].shape[0])
        super()._load_from_state_dict(state, prefix, *rest)

    def put(
        self, slot: int, maps: Sequence[torch.Tensor], points: Mapping[int, torch.Tensor], grid: Sequence[int]
    ) -> None:
        """Keep a template.

        Args:
            slot: which.
            maps: embedding (D, *level grid) of each level.
            points: index of the landmark -> (axes,) voxels of the network's grid.
            grid: the network's grid.
        """
        for index, point in points.items():
            place = relative(point.to(self.places), grid)
            self.known[slot, index] = True
            self.places[slot, index] = place
            for level, found in enumerate(maps):
                self.patches[level, slot, index] = cut(found, prior_voxels(place, found.shape[1:]), 2 * self.radius)

    def windows(self, level: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Windows of a map (D, *grid) around points (L, axes), given as share of the field of view."""
        return torch.stack([cut(level, point, 2 * self.radius) for point in prior_voxels(shares, level.shape[1:])])

    def kernels(self, level: int) -> torch.Tensor:
        """Windows of a level: (T, L, D, *(2 r + 1,)), unweighted."""
        r = self.radius
        inner = (slice(None),) * 3 + (slice(r, 3 * r + 1),) * (self.patches.ndim - 4)
        return self.patches[level][inner].float()

    def weights(self) -> torch.Tensor:
        """Gaussian window of sum 1, (*(2 r + 1,))."""
        return gaussian(self.radius, self.window, self.places.shape[2]).to(self.places)


@torch.no_grad()
def embed_pyramid(network: EmbeddingNet, image: MetaTensor, factors: Sequence[int]) -> list[torch.Tensor]:
    """Embedding of an image (C, *grid) at several scales: (D, *grid / factor) each.

    In float32 also under autocast, as templates are embedded outside of it.
    """
    device = network.prototypes.device
    maps = []
    with torch.autocast(device.type, enabled=False):
        for factor in factors:
            small = resize(image, [max(32, round(n / factor)) for n in image.shape[1:]])
            levels = network.maps(small.as_tensor()[None].to(device))
            maps.append(network.dense(levels)[0][0])
    return maps


@torch.no_grad()
def find_landmarks(
    bank: TemplateBank, maps: Sequence[torch.Tensor], grid: Sequence[int], search: float, matching: str = "window"
) -> Found:
    """Search all landmarks coarse to fine.

    At the coarsest level the whole image, or a ball around the templates' own positions, is searched; then landmarks
    that do not fit one affine map with the others are put where it says; the finer levels look nearby, and what the
    coarser levels said of a place counts there as well. In float32 also under autocast: places a voxel apart differ by
    less than half precision tells.

    Args:
        bank: the templates.
        maps: of `embed_pyramid`.
        grid: the network's grid.
        search: radius of the first search as share of the longest axis; 0: everywhere.
        matching: "window" or "pooled".
    """
    with torch.autocast(bank.places.device.type, enabled=False):
        return _search(bank, maps, grid, search, matching)


def _search(
    bank: TemplateBank, maps: Sequence[torch.Tensor], grid: Sequence[int], search: float, matching: str
) -> Found:
    share = bank.known.float() / bank.known.float().sum(dim=0, keepdim=True).clamp_min(1)
    prior = (bank.places * share[..., None]).sum(dim=0)
    coarse = maps[0].shape[1:]
    scores = respond(bank, 0, maps[0][None], share, matching)
    if search > 0:
        far = torch.cdist(prior_voxels(prior, coarse), voxels(coarse, prior)) > max(search * max(coarse), 1.0)
        scores = scores.masked_fill(far.reshape(scores.shape), -1.0)
    origin = torch.zeros_like(prior)
    points = (highest(scores) + 0.5) / _sizes(coarse, prior)
    points = regularise(points, prior, scores.flatten(1).amax(dim=1))
    for level in range(1, len(maps)):
        fine, before = maps[level].shape[1:], maps[level - 1].shape[1:]
        radius = LOCAL * max(1, round(max(fine) / max(before)))
        starts = prior_voxels(points, fine).round() - radius
        local = torch.stack(
            [cut_box(maps[level], start - bank.radius, 2 * (radius + bank.radius) + 1) for start in starts]
        )
        own = respond(bank, level, local, share, matching, inside=True)
        places = voxels(own.shape[1:], prior)[None] + starts[:, None]
        there = (places + 0.5) / _sizes(fine, prior) * _sizes(before, prior) - 0.5 - origin[:, None]
        carried = read_at(scores[:, None], there)[..., 0].reshape(own.shape)
        scores, origin = own + CARRIED * carried, starts
        points = (highest(scores) + starts + 0.5) / _sizes(fine, prior)
    last = maps[-1]
    peak, cycle = check(bank, last, prior_voxels(points, last.shape[1:]), share)
    confidence = peak.clamp(0, 1) * torch.exp(-0.5 * (cycle / CYCLE) ** 2)
    return Found(points * _sizes(grid, prior) - 0.5, confidence, cycle)


def respond(
    bank: TemplateBank, level: int, maps: torch.Tensor, share: torch.Tensor, matching: str, inside: bool = False
) -> torch.Tensor:
    """Similarity of every place to the templates' windows, in [-1, 1].

    Args:
        bank: the templates.
        level: of the pyramid.
        maps: (1, D, *grid) for all landmarks, or (L, D, *grid) one per landmark.
        share: (T, L) weight of each template.
        matching: "window": mean cosine of vectors at equal offsets; "pooled": cosine of the windows' weighted means.
        inside: only places whose window lies inside the map.

    Returns:
        (L, *grid), or smaller by the window where `inside`.
    """
    weights, kernels = bank.weights(), bank.kernels(level)
    axes, r = weights.ndim, bank.radius
    convolve = F.conv3d if axes == 3 else F.conv2d
    padded = maps if inside else F.pad(maps, (r, r) * axes, mode="replicate")
    if matching == "pooled":
        pooled = F.normalize((kernels * weights).flatten(3).sum(dim=3), dim=2)
        kernels = pooled.reshape(*pooled.shape, *(1,) * axes).expand_as(kernels)
    kernel = (kernels * weights * share.reshape(*share.shape, *(1,) * (axes + 1))).sum(dim=0)
    if maps.shape[0] == 1:
        scores = convolve(padded, kernel)[0]
    else:
        scores = convolve(padded.flatten(0, 1)[None], kernel, groups=kernel.shape[0])[0]
    if matching == "pooled":
        ones = weights[None, None].expand(maps.shape[1], 1, *weights.shape)
        scores = scores / convolve(padded, ones, groups=maps.shape[1]).norm(dim=1).clamp_min(1e-6)
    return scores


def check(
    bank: TemplateBank, last: torch.Tensor, points: torch.Tensor, share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity at the found points, and how far off the search back in the template ends.

    Returns:
        (L,) cosine and (L,) cycle error in voxels, both means over templates.
    """
    weights, axes = bank.weights(), points.shape[1]
    convolve = F.conv3d if axes == 3 else F.conv2d
    windows = torch.stack([cut(last, point, bank.radius) for point in points])
    patches = bank.patches[-1].float()
    peaks, cycles = torch.zeros_like(share), torch.zeros_like(share)
    for slot in range(share.shape[0]):
        kernel = windows * weights
        back = convolve(patches[slot].flatten(0, 1)[None], kernel, groups=len(points))[0]
        middle: tuple[slice | int, ...] = (slice(None), *(bank.radius,) * axes)
        peaks[slot] = back[middle]
        cycles[slot] = (highest(back) - bank.radius).norm(dim=1)
    return (peaks * share).sum(dim=0), (cycles * share).sum(dim=0)


def regularise(points: torch.Tensor, prior: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
    """Replace points that do not fit an affine map of the templates' positions with the others.

    Iteratively reweighted least squares; with fewer than axes + 3 landmarks there is nothing to compare with.

    Args:
        points: (L, axes) found, relative to the grid.
        prior: (L, axes) of the templates, relative.
        trust: (L,) weights.
    """
    count, axes = points.shape
    if count < axes + 3:
        return points
    design = torch.cat([prior, torch.ones_like(prior[:, :1])], dim=1).double()
    target, weight = points.double(), trust.double().clamp_min(1e-3)
    base = weight
    ridge = 1e-6 * torch.eye(axes + 1, dtype=design.dtype, device=design.device)
    for _ in range(10):
        gram = design.T @ (design * weight[:, None]) + ridge
        fit = torch.linalg.solve(gram, design.T @ (target * weight[:, None]))
        apart = (target - design @ fit).norm(dim=1)
        typical = apart.median().clamp_min(0.01)
        weight = base / (1 + (apart / typical) ** 2)
    wild = apart > 4 * typical
    return torch.where(wild[:, None], design @ fit, target).to(points.dtype)


def highest(scores: torch.Tensor) -> torch.Tensor:
    """Place of the maximum of each map (L, *grid), refined by a parabola along each axis: (L, axes)."""
    grid = scores.shape[1:]
    places = torch.stack(torch.unravel_index(scores.flatten(1).argmax(dim=1), grid), dim=1).to(scores.dtype)
    steps = torch.eye(len(grid), dtype=scores.dtype, device=scores.device)
    near = torch.cat([torch.zeros_like(steps[:1]), steps, -steps])
    around = read_at(scores[:, None], places[:, None] + near[None])[..., 0]
    middle, after, before = around[:, :1], around[:, 1 : len(grid) + 1], around[:, len(grid) + 1 :]
    bend = (before - 2 * middle + after).clamp(max=-1e-8)
    return places + (0.5 * (before - after) / bend).clamp(-0.5, 0.5)


def relative(point: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Voxel coordinates as share of the field of view."""
    return (point + 0.5) / _sizes(grid, point)


def prior_voxels(points: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Shares of the field of view as voxel coordinates."""
    return points * _sizes(grid, points) - 0.5


def voxels(grid: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Coordinates of all voxels of a grid, (voxels, axes)."""
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(axes))


def cut(tensor: torch.Tensor, centre: torch.Tensor, radius: int) -> torch.Tensor:
    """The cube (C, *(2 radius + 1,)) around a point of (C, *grid), interpolated; the border repeats outside."""
    return cut_box(tensor, centre - radius, 2 * radius + 1)


def cut_box(tensor: torch.Tensor, start: torch.Tensor, side: int) -> torch.Tensor:
    """The cube of `side` voxels from `start`, interpolated."""
    axes = tensor.ndim - 1
    places = voxels((side,) * axes, start) + start
    return read_at(tensor[None], places[None])[0].T.reshape(-1, *(side,) * axes)


def gaussian(radius: int, sigma: float, axes: int) -> torch.Tensor:
    """Gaussian window of sum 1, (*(2 radius + 1,))."""
    squares = (voxels((2 * radius + 1,) * axes, torch.zeros(1)) - radius).square().sum(dim=1)
    window = torch.exp(-squares / (2 * sigma**2))
    return (window / window.sum()).reshape((2 * radius + 1,) * axes)


def _sizes(grid: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(tuple(grid), dtype=like.dtype, device=like.device)
