"""The network: a V-Net whose decoder maps are read together at a point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from medseg.networks.trunk import Trunk
from medseg.networks.vnet import VNet

HIDDEN = 64  # ours: twice the embedding of the card


class EmbeddingNet(nn.Module):
    """A trunk, embedding head and region head; the trunk is the network of the method that will start from it.

    Encoder and decoder train whole: the heads read the maps of all decoder levels at a place (a hypercolumn), not
    only the last one, whose few channels cannot tell places apart. The heads work point by point, so that the patch
    loss needs the vectors of its points alone and never a full-size embedding map.

    Source: local discrimination card sec. 4.
    Deviation: the class of the network that is fine-tuned (by default a V-Net with instance norm) instead of a
    quartered VGG-16; pointwise heads on all decoder levels; softmax over regions instead of a sigmoid divided by its
    sum.

    Args:
        trunk: whose decoder maps are read.
        embedding: D, length of the unit vectors.
        regions: K.
    """

    def __init__(self, trunk: Trunk, embedding: int, regions: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.mix = nn.Linear(sum(trunk.widths), HIDDEN)
        self.embed = nn.Sequential(nn.LayerNorm(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, embedding))
        self.assign = nn.Sequential(nn.LayerNorm(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, regions))
        self.register_buffer("prototypes", torch.zeros(regions, embedding))
        self.prototypes: torch.Tensor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of a V-Net trunk's own head: (B, C, *grid) -> (B, classes, *grid)."""
        assert isinstance(self.trunk, VNet)
        logits: torch.Tensor = self.trunk.head(self.maps(image)[0])
        return logits

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The trunk's decoder maps, fine to coarse, see `Trunk.maps`."""
        return self.trunk.maps(image)

    def vectors_at(self, maps: Sequence[torch.Tensor], points: torch.Tensor) -> torch.Tensor:
        """Unit vectors at points.

        Args:
            maps: of `maps`.
            points: (B, M, axes) voxel coordinates on the image's grid.

        Returns:
            (B, M, D) float32.
        """
        strides = self.trunk.strides
        column = torch.cat([read_at(level, points, s) for level, s in zip(maps, strides, strict=True)], dim=-1)
        return F.normalize(self.embed(self.mix(column)).float(), dim=-1)

    def dense(self, maps: Sequence[torch.Tensor], level: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Embedding and regions on the grid of one decoder level.

        Returns:
            Unit vectors (B, D, *grid) and regions (B, K, *grid) that sum to 1; float32.
        """
        hidden = self._hidden(maps, level)
        vectors = F.normalize(self.embed(hidden).float(), dim=-1)
        regions = torch.softmax(self.assign(hidden).float(), dim=-1)
        return vectors.movedim(-1, 1), regions.movedim(-1, 1)

    def on_grid(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embedding and regions of every voxel of images (B, C, *grid), whatever the stride of the finest map is.

        Returns:
            As `dense`, on the images' own grid; the voxels of one cell have the same.
        """
        window = (slice(None), slice(None), *(slice(n) for n in image.shape[2:]))
        vectors, regions = (_spread(found, self.trunk.strides[0])[window] for found in self.dense(self.maps(image)))
        return vectors, regions

    def _hidden(self, maps: Sequence[torch.Tensor], level: int) -> torch.Tensor:
        """The mixed hypercolumn (B, *grid, HIDDEN). Mixing before interpolation is the same and takes less memory."""
        grid, strides = maps[level].shape[2:], self.trunk.strides
        weights = self.mix.weight.split(self.trunk.widths, dim=1)
        total: torch.Tensor | None = None
        for part, weight, stride in zip(maps, weights, strides, strict=True):
            share = torch.einsum("bc...,hc->bh...", part, weight.to(part.dtype))
            moved = _to_level(share, stride, strides[level], grid)
            total = moved if total is None else total + moved
        assert total is not None
        return total.movedim(1, -1) + self.mix.bias


def read_at(tensor: torch.Tensor, points: torch.Tensor, stride: Sequence[int] | int = 1) -> torch.Tensor:
    """Linear interpolation at points, the border's value outside.

    Args:
        tensor: (B, C, *grid), each voxel covering `stride` voxels of the points' grid, along every or along each axis.
        points: (B, M, axes).

    Returns:
        (B, M, C).
    """
    sizes = points.new_tensor(tensor.shape[2:]) * points.new_tensor(stride)
    places = (2 * (points + 0.5) / sizes - 1).flip(-1)  # grid_sample wants the last axis first
    shape = (places.shape[0], places.shape[1], *(1,) * (places.shape[2] - 1), places.shape[2])
    found = F.grid_sample(
        tensor.float(), places.reshape(shape).float(), mode="bilinear", padding_mode="border", align_corners=False
    )
    return found.flatten(2).transpose(1, 2)


def _spread(cells: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """Every cell of (B, C, *cells) repeated for the voxels that it covers."""
    return F.interpolate(cells, scale_factor=[float(s) for s in stride], mode="nearest")


def _to_level(share: torch.Tensor, stride: Sequence[int], target: Sequence[int], grid: Sequence[int]) -> torch.Tensor:
    """Move a map from one stride to a finer or coarser one, onto `grid`."""
    axes = share.ndim - 2
    if tuple(stride) == tuple(target):
        return share
    if stride[0] > target[0]:
        mode = "trilinear" if axes == 3 else "bilinear"
        factors = [float(s // t) for s, t in zip(stride, target, strict=True)]
        moved = F.interpolate(share, scale_factor=factors, mode=mode, align_corners=False)
    else:
        pool = F.avg_pool3d if axes == 3 else F.avg_pool2d
        moved = pool(share, [t // s for s, t in zip(stride, target, strict=True)], ceil_mode=True)
    return moved[(slice(None), slice(None), *(slice(n) for n in grid))]
