"""A small V-Net, the encoder-decoder of the semi-supervised segmentation literature, in 2D and 3D, for any grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.layers.factories import Conv, Dropout, Norm
from torch import nn
from torch.nn import functional as F

from medseg.networks.trunk import Trunk

DEPTHS = (1, 2, 3, 3, 3)
"""Convolutions per encoder level; the decoder mirrors the first four (CAML card sec. 3)."""

UPSAMPLINGS = ("transposed", "interpolated")
NORMS = ("batch", "instance", "group")


class VNet(Trunk):
    """Five levels of 3x3x3 convolutions with added skips; 9.449 M parameters in 3D at width 16 with two classes.

    Source: Milletari et al., V-Net, 3DV 2016, arXiv 1606.04797, in the reduced form that UA-MT (Yu et al., MICCAI
    2019, arXiv 1907.07034) made the habit of the field: no residual convolutions, 3x3x3 kernels, added skips.
    Deviation: odd grids are padded by one voxel where they are halved and cropped where they are doubled, so that any
    grid works; the embedding is taken before the last dropout, which would blank half of its channels.

    Args:
        in_channels: image channels.
        out_channels: classes, background included.
        spatial_dims: 2 or 3.
        width: channels of the first level; each level doubles them.
        norm: "batch", "instance" or "group" (8 groups, or as many as divide the width).
        upsampling: "transposed" (stride-2 transposed convolution) or "interpolated" (linear x2, then convolution).
        dropout: channel dropout after level 5 and before the head, in training only.
        residual: adds the input of every level's convolutions to their output, as the first V-Net did.

    Raises:
        ValueError: an unknown norm or up-sampling, or other than 2 or 3 axes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int = 3,
        width: int = 16,
        norm: str = "batch",
        upsampling: str = "transposed",
        dropout: float = 0.5,
        residual: bool = False,
    ) -> None:
        super().__init__()
        _check(spatial_dims, norm, upsampling)
        channels = [width * 2**level for level in range(len(DEPTHS))]
        self.width = width
        self.widths = tuple(channels[:-1])
        self.strides = tuple((2**level,) * spatial_dims for level in range(len(DEPTHS) - 1))
        self.encoder = Encoder(in_channels, channels, _Layers(spatial_dims, norm), residual)
        self.deep_dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)
        self.decoder = Decoder(channels, _Layers(spatial_dims, norm), upsampling, residual)
        self.last_dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)
        self.head = Conv[Conv.CONV, spatial_dims](width, out_channels, kernel_size=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Segment.

        Args:
            image: (B, in_channels, *grid).

        Returns:
            Logits (B, out_channels, *grid).
        """
        return self.with_embedding(image)[0]

    def with_embedding(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, out_channels, *grid) and the map they are read from, (B, width, *grid)."""
        *skips, deepest = self.encoder(image)
        embedding = self.decoder([*skips, self.deep_dropout(deepest)])
        return self.head(self.last_dropout(embedding)), embedding

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """As `Trunk.maps`: the decoder's four levels, without dropout."""
        return self.decoder.maps(self.encoder(image))


class Encoder(nn.Module):
    """Levels of convolutions with a stride-2 convolution between them.

    `levels[i]` gives the map of level i + 1, which goes to the skip and to the next level; a module put behind it
    (`medseg.networks.hooks.insert_after`) replaces the map on both ways.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], layers: _Layers, residual: bool) -> None:
        super().__init__()
        inputs = [in_channels, *channels[1:]]
        self.levels = nn.ModuleList(
            layers.level(i, c, depth, residual) for i, c, depth in zip(inputs, channels, DEPTHS, strict=True)
        )
        self.downs = nn.ModuleList(
            layers.unit(layers.down(fine, coarse), coarse) for fine, coarse in pairwise(channels)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, in_channels, *grid) to the maps of all levels, level i at 1 / 2**i of the grid (rounded up)."""
        maps = [self.levels[0](x)]
        for down, level in zip(self.downs, list(self.levels)[1:], strict=True):
            maps.append(level(down(_pad_to_even(maps[-1]))))
        return maps


class Decoder(nn.Module):
    """From the coarsest map back to the image's grid, adding the encoder's map at every level."""

    def __init__(self, channels: Sequence[int], layers: _Layers, upsampling: str, residual: bool) -> None:
        super().__init__()
        up = layers.up_transposed if upsampling == "transposed" else layers.up_interpolated
        fine_to_coarse = list(pairwise(channels))
        self.ups = nn.ModuleList(layers.unit(up(coarse, fine), fine) for fine, coarse in fine_to_coarse)
        self.levels = nn.ModuleList(
            layers.level(fine, fine, depth, residual) for (fine, _), depth in zip(fine_to_coarse, DEPTHS, strict=False)
        )

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps of the encoder, fine to coarse, to the embedding (B, width, *grid)."""
        return self.maps(maps)[0]

    def maps(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Maps of the encoder to those of all decoder levels, both fine to coarse."""
        *skips, x = maps
        found = []
        for up, level, skip in reversed(list(zip(self.ups, self.levels, skips, strict=True))):
            x = level(_crop_like(up(x), skip) + skip)
            found.append(x)
        return found[::-1]


class Level(nn.Module):
    """A chain of conv + norm + ReLU; with `residual`, its input is added before the last ReLU.

    One input channel is added to all channels; any other number that differs from the output's is not added.
    """

    def __init__(self, units: Sequence[nn.Module], residual: bool) -> None:
        super().__init__()
        self.units = nn.Sequential(*units)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, *grid) to (B, C, *grid)."""
        y: torch.Tensor = self.units(x)
        if not self.residual:
            return y
        return torch.relu(y + x if x.shape[1] in (1, y.shape[1]) else y)


class _Layers:
    """Builds the layers of one network for its number of axes and its norm."""

    def __init__(self, spatial_dims: int, norm: str) -> None:
        self.dims = spatial_dims
        self.norm = norm
        self.conv = Conv[Conv.CONV, spatial_dims]
        self.transposed = Conv[Conv.CONVTRANS, spatial_dims]

    def unit(self, convolution: nn.Module, channels: int) -> nn.Sequential:
        return nn.Sequential(convolution, self._norm(channels), nn.ReLU(inplace=True))

    def level(self, inputs: int, channels: int, depth: int, residual: bool) -> Level:
        sizes = [inputs] + [channels] * depth
        convolutions = [self.conv(i, o, kernel_size=3, padding=1) for i, o in pairwise(sizes)]
        units = [self.unit(convolution, channels) for convolution in convolutions]
        if residual:
            del units[-1][-1]  # the level applies the last ReLU itself
        return Level(units, residual)

    def down(self, fine: int, coarse: int) -> nn.Module:
        return self.conv(fine, coarse, kernel_size=2, stride=2)

    def up_transposed(self, coarse: int, fine: int) -> nn.Module:
        return self.transposed(coarse, fine, kernel_size=2, stride=2)

    def up_interpolated(self, coarse: int, fine: int) -> nn.Module:
        mode = "trilinear" if self.dims == 3 else "bilinear"
        double = nn.Upsample(scale_factor=2, mode=mode, align_corners=True)
        return nn.Sequential(double, self.conv(coarse, fine, kernel_size=3, padding=1))

    def _norm(self, channels: int) -> nn.Module:
        if self.norm == "batch":
            return Norm[Norm.BATCH, self.dims](channels)
        if self.norm == "instance":
            return Norm[Norm.INSTANCE, self.dims](channels, affine=True)
        groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
        return nn.GroupNorm(groups, channels)


def _pad_to_even(x: torch.Tensor) -> torch.Tensor:
    """Repeat the last voxel along odd axes, so that halving drops nothing."""
    odd = [side for length in reversed(x.shape[2:]) for side in (0, length % 2)]
    return F.pad(x, odd, mode="replicate") if any(odd) else x


def _crop_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Drop what doubling has beyond the grid of `like`."""
    return x[(slice(None), slice(None), *(slice(length) for length in like.shape[2:]))]


def _check(spatial_dims: int, norm: str, upsampling: str) -> None:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims = {spatial_dims}; choose 2 or 3")
    if norm not in NORMS:
        raise ValueError(f"norm = {norm!r} is unknown; choose one of {NORMS}")
    if upsampling not in UPSAMPLINGS:
        raise ValueError(f"upsampling = {upsampling!r} is unknown; choose one of {UPSAMPLINGS}")


def prefer_channels_last(network: nn.Module) -> None:
    """Store the 3D convolutions of every V-Net in a network with the channels last, where they are on a CPU.

    There a training step takes less time (benchmarks/caml); the weights stay the same. Only with batch norm: behind
    instance norms gradients differed by up to 8 % of their largest.
    """
    for part in network.modules():
        batch_norm = isinstance(part, VNet) and any(isinstance(norm, nn.BatchNorm3d) for norm in part.modules())
        for convolution in part.modules() if batch_norm else ():
            if isinstance(convolution, (nn.Conv3d, nn.ConvTranspose3d)):
                weight = convolution.weight
                if weight.device.type == "cpu":
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
