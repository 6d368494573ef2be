"""Two views of one image with tracked correspondences: affine, crop, mirror and elastic, in 2D and 3D.

A view is a map from its own voxels to those of the image. Points are drawn in the image and pushed into both views by
inverting the maps, so every transform is legal, mirrors and elastic ones included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from medseg.methods.local_discrimination.network import read_at

CONTROL = 4  # ours: control points of the elastic field along each axis
SHAPE_ZOOM = (0.6, 1.5)  # ours: a shape prior is asked for in images at their own size
INVERSIONS = 12  # ours: fixed-point steps; the error is below 0.01 voxels for the fields drawn here


@dataclass(frozen=True)
class ViewSettings:
    """How strongly views differ.

    Attributes:
        patch: voxels of a view.
        zoom: smallest and largest image voxels per view voxel, shared by both views of a pair.
        scaling: largest relative deviation of one view's zoom along each axis.
        rotation: largest turn in degrees (about every axis in 3D).
        mirror: probability that a view is mirrored along its first axis.
        elastic: largest displacement, as share of the distance between control points.
        shift: largest distance of the views' centres, as share of the patch.
    """

    patch: tuple[int, ...]
    zoom: tuple[float, float] = (1.0, 1.0)
    scaling: float = 0.15
    rotation: float = 15.0
    mirror: float = 0.5
    elastic: float = 0.12
    shift: float = 0.25


@dataclass(frozen=True)
class View:
    """x = matrix (q - middle) + centre + field(q): voxel q of the view to voxel x of the image.

    Attributes:
        matrix: (axes, axes).
        centre: (axes,) place in the image of the view's middle.
        field: (axes, *control) displacement in image voxels, interpolated linearly over the view.
        patch: voxels of the view.
    """

    matrix: torch.Tensor
    centre: torch.Tensor
    field: torch.Tensor
    patch: tuple[int, ...]

    @property
    def middle(self) -> torch.Tensor:
        """The view's middle in its own voxels."""
        return (torch.tensor(self.patch, dtype=torch.float32) - 1) / 2

    def to_image(self, points: torch.Tensor) -> torch.Tensor:
        """(M, axes) voxels of the view to voxels of the image."""
        return (points - self.middle) @ self.matrix.T + self.centre + self._displacement(points)

    def from_image(self, points: torch.Tensor) -> torch.Tensor:
        """(M, axes) voxels of the image to voxels of the view, by fixed-point iteration."""
        back = torch.linalg.inv(self.matrix).T
        found = (points - self.centre) @ back + self.middle
        for _ in range(INVERSIONS if bool(self.field.any()) else 0):
            found = (points - self.centre - self._displacement(found)) @ back + self.middle
        return found

    def render(self, image: torch.Tensor) -> torch.Tensor:
        """The view (C, *patch) of an image (C, *grid); outside the image its border continues."""
        axes = [torch.arange(n, dtype=torch.float32) for n in self.patch]
        voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(self.patch))
        values = read_at(image[None], self.to_image(voxels)[None])[0]
        return values.T.reshape(image.shape[0], *self.patch)

    def _displacement(self, points: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor(self.patch, dtype=torch.float32)
        places = (2 * points / (sizes - 1).clamp_min(1) - 1).flip(-1)
        shape = (1, len(points), *(1,) * (len(self.patch) - 1), len(self.patch))
        found = F.grid_sample(self.field[None], places.reshape(shape), padding_mode="border", align_corners=True)
        return found[0].flatten(1).T


def draw_views(grid: Sequence[int], start: torch.Tensor, settings: ViewSettings, rng: torch.Generator) -> list[View]:
    """Two overlapping views around a place.

    Args:
        grid: voxels of the image.
        start: (axes,) a place in the image.
        settings: how strongly they differ.
        rng: source of all randomness.
    """
    axes = len(settings.patch)
    low, high = settings.zoom
    zoom = math.exp(_uniform(rng, math.log(low), math.log(high)))
    extent = torch.tensor(settings.patch) * zoom
    views = []
    for _ in range(2):
        centre = start + (torch.rand(axes, generator=rng) - 0.5) * 2 * settings.shift * extent
        centre = torch.minimum(torch.maximum(centre, torch.zeros(axes)), torch.tensor(grid) - 1.0)
        views.append(_draw_view(centre, zoom, settings, rng))
    return views


def _draw_view(centre: torch.Tensor, zoom: float, settings: ViewSettings, rng: torch.Generator) -> View:
    axes = len(settings.patch)
    matrix = torch.eye(axes)
    for first in range(axes):
        for second in range(first + 1, axes):
            angle = math.radians(_uniform(rng, -settings.rotation, settings.rotation))
            turn = torch.eye(axes)
            turn[first, first] = turn[second, second] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ turn
    scales = torch.exp((torch.rand(axes, generator=rng) * 2 - 1) * math.log1p(settings.scaling)) * zoom
    if float(torch.rand(1, generator=rng)) < settings.mirror:
        scales[0] = -scales[0]
    spacing = torch.tensor(settings.patch, dtype=torch.float32) * zoom / (CONTROL - 1)
    field = (torch.rand(axes, *(CONTROL,) * axes, generator=rng) * 2 - 1) * settings.elastic
    return View(matrix * scales, centre, field * spacing.reshape(axes, *(1,) * axes), settings.patch)


def draw_points(
    views: Sequence[View], inside: torch.Tensor, count: int, near: float, rng: torch.Generator
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Places of the image that both views show.

    Half of them is spread over the first view; the other half lies close to the first half, which gives negatives that
    are hard to tell apart (ours: without them a vector may be a few voxels off at no cost).

    Args:
        views: of one image.
        inside: (*grid) bool; places to draw from, for example the field of view.
        count: number of points M.
        near: standard deviation of the close ones, in voxels of the view.
        rng: source of all randomness.

    Returns:
        Places (M, axes) in the image, points (M, axes) in each view, and (M,) bool: the point is inside and in both.
    """
    patch = torch.tensor(views[0].patch, dtype=torch.float32)
    tried = 4 * count
    spread = torch.rand(tried, len(patch), generator=rng) * (patch - 1)
    spread[1::2] = spread[::2] + near * torch.randn(tried // 2, len(patch), generator=rng)
    places = views[0].to_image(spread)
    points = [view.from_image(places) for view in views]
    valid = _within(places, inside.shape)
    nearest = places.round().long().clamp_min(0)
    nearest = torch.minimum(nearest, torch.tensor(inside.shape) - 1)
    valid &= inside[tuple(nearest.T)]
    for found in points:
        valid &= _within(found, views[0].patch)
    order = torch.argsort(~valid, stable=True)[:count]
    return places[order], [found[order] for found in points], valid[order]


def lattice(patch: Sequence[int], count: int) -> torch.Tensor:
    """About `count` voxels spread evenly over a view, the same for every view: (M, axes)."""
    side = max(2, round(count ** (1 / len(patch))))
    axes = [(torch.arange(side) + 0.5) * n / side - 0.5 for n in patch]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(patch))


def partners(views: Sequence[View], pixels: torch.Tensor, grid: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where voxels (M, axes) of the first view are in the second, and whether both and the image show them (M,)."""
    places = views[0].to_image(pixels)
    found = views[1].from_image(places)
    return found, _within(places, grid) & _within(found, views[1].patch)


def _within(points: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    return ((points >= 0) & (points <= torch.tensor(grid) - 1.0)).all(dim=1)


def _uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=rng))


def draw_view_of_shape(shape: torch.Tensor, settings: ViewSettings, rng: torch.Generator) -> torch.Tensor:
    """A view (1, *patch) of a binary mask (1, *grid), anywhere in it and about as large as in the images."""
    own = replace(settings, zoom=SHAPE_ZOOM, shift=0.0)
    grid, patch = torch.tensor(shape.shape[1:]), torch.tensor(settings.patch)
    free = (grid - patch).clamp_min(0) / 2
    slack = free + 0.1 * patch  # a patch as large as the picture moves a little, too
    centre = (grid - 1) / 2 + (2 * torch.rand(len(patch), generator=rng) - 1) * slack
    return draw_views(shape.shape[1:], centre, own, rng)[0].render(shape)
