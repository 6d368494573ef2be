"""Everything that dRAM trains: a backbone with a lesion and a lung map, attention, CRF, and the final network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import UnetBasicBlock, UnetUpBlock
from torch import nn
from torch.nn import functional as F

from medseg.methods.dram.candidates import SoftCandidates
from medseg.networks.crf import WindowedCRF
from medseg.networks.local_attention import LocalAttention
from medseg.networks.trunk import Trunk, pad_to_multiple, without_padding

FACTORS = (8, 8, 4)
"""How much the backbone halves along x, y and z: chest CT slices are mostly thicker than its pixels are wide."""

CAM_LEVEL = 2
"""Ours: level that activation maps are read at, a quarter of the plane; the deepest one is coarser than the lesions."""

VOXELS = (1.0, 1.0, 1.0)

GUIDE = 8
"""Channels to which each feature map of the guidance is reduced (dRAM card sec. 4)."""


class Backbone(Trunk):
    """A 3D U-Net of four levels that keeps the slices apart in its finer half.

    Blocks are MONAI's (those of DynUNet). The two finer levels convolve in the plane only and the first halving leaves
    z alone.

    Source: Ronneberger et al. 2015 / Cicek et al. 2016; nnU-Net's rule for anisotropic grids (Isensee et al. 2021).
    Deviation: group norm instead of batch norm, because a batch is one volume and frozen statistics must not drift.

    Args:
        channels: image channels.
        outputs: maps.
        width: channels of the finest level; each level doubles them.
        decoder: False leaves the way up out (class activation maps).
    """

    def __init__(self, channels: int, outputs: int, width: int, decoder: bool = True) -> None:
        super().__init__()
        sizes = [width * 2**level for level in range(4)]
        flat, deep = (3, 3, 1), (3, 3, 3)
        kernels, strides = (flat, flat, deep, deep), ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
        norm = ("GROUP", {"num_groups": 4, "affine": True})
        self.down = nn.ModuleList(
            UnetBasicBlock(3, inputs, size, kernel, stride, norm)
            for inputs, size, kernel, stride in zip([channels, *sizes], sizes, kernels, strides, strict=False)
        )
        self.up = nn.ModuleList(
            UnetUpBlock(3, sizes[level + 1], sizes[level], kernels[level], strides[level + 1], strides[level + 1], norm)
            for level in range(3)
        ) if decoder else None  # fmt: skip
        self.head = nn.Conv3d(sizes[0], outputs, 1) if decoder else None
        self.sizes = sizes
        self.widths = tuple(sizes[:-1])
        self.strides = ((1, 1, 1), (2, 2, 1), (4, 4, 2))

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """As `Trunk.maps`: the decoder's three levels."""
        return without_padding(self.decoded(self.encode(pad_to_factors(image))), image.shape[2:], self.strides)

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps (B, width * 2**level, ...) of a grid that `FACTORS` divides, finest first."""
        maps = [image]
        for block in self.down:
            maps.append(block(maps[-1]))
        return maps[1:]

    def decode(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """The finest decoder map (B, width, *grid)."""
        return self.decoded(maps)[0]

    def decoded(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """All decoder maps, finest first."""
        assert self.up is not None
        x, found = maps[-1], []
        for block, skip in zip(reversed(list(self.up)), reversed(maps[:-1]), strict=True):
            x = block(x, skip)
            found.append(x)
        return found[::-1]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Maps (B, outputs, *grid) and encoder features, on any grid: padded and cut again."""
        assert self.head is not None
        grid = image.shape[2:]
        maps = self.encode(pad_to_factors(image))
        return cut(self.head(self.decode(maps)), grid), maps


class Guidance(nn.Module):
    """Image and the two finest encoder features, each reduced to 8 channels: 17 channels that guide the attention.

    Source: dRAM card sec. 4. Deviation: on the map's own grid, group norm instead of batch norm.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv3d(size, GUIDE, 1), nn.GroupNorm(2, GUIDE), nn.ReLU(inplace=True))
            for size in sizes[:2]
        )

    def forward(self, image: torch.Tensor, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B, 17, *grid), detached from the backbone."""
        grid = image.shape[2:]
        fine = cut(self.reduce[0](maps[0].detach()), grid)
        padded = pad_to_factors(image).shape[2:]
        coarse = F.interpolate(self.reduce[1](maps[1].detach()), padded, mode="trilinear", align_corners=False)
        return torch.cat([image, fine, cut(coarse, grid)], dim=1)


class DRAMNet(nn.Module):
    """All parts of the method; absent parts are None.

    Args:
        width: of the backbone and of the final network.
        candidates: window of the soft candidates that the lesion maps start as; 0: without.

    Attributes:
        cut: of the threshold baseline, in windowed intensity.
        started: whether the start values have been fitted to the extents.
        head: "dense", "cam", "gradcam", "threshold" or "otsu".
        attention: form of the attention; None: without.
        crf: the field; None: without.
        final: with a final network.
    """

    cut: torch.Tensor
    started: torch.Tensor

    def __init__(
        self, width: int, head: str, attention: str | None, crf: WindowedCRF | None, final: bool, candidates: int
    ) -> None:
        super().__init__()
        self.backbone = Backbone(1, 2, width)
        activation = head in ("cam", "gradcam")
        self.classifier = nn.Linear(self.backbone.sizes[CAM_LEVEL], 1) if activation else None
        self.guidance = Guidance(self.backbone.sizes) if attention else None
        self.attention = LocalAttention(2 * GUIDE + 1, GUIDE, form=attention) if attention else None
        self.crf = crf
        self.final = Backbone(1, 2, width) if final else None
        self.candidates = SoftCandidates(candidates) if candidates else None
        self.final_candidates = SoftCandidates(candidates) if candidates and final else None
        self.register_buffer("cut", torch.tensor(0.5))
        self.register_buffer("started", torch.tensor(False))

    def maps(
        self, image: torch.Tensor, inside: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Stage 1.

        Args:
            image: (B, 1, *grid).
            inside: (B, 1, *grid) 1 in the lungs; None: where the lung map says so.

        Returns:
            Lesion logits d and lung logits, (B, 1, *grid) float32 each, and the encoder's features.
        """
        outputs, features = self.backbone(image)
        return (*_with_candidates(outputs.float(), self.candidates, image, inside), features)

    def final_maps(self, image: torch.Tensor, inside: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Lesion and lung logits of the final network; arguments as above."""
        assert self.final is not None
        outputs, _ = self.final(image)
        return _with_candidates(outputs.float(), self.final_candidates, image, inside)

    def warm_final(self) -> None:
        """Start the final network from the first stage's weights."""
        assert self.final is not None
        self.final.load_state_dict(self.backbone.state_dict())
        if self.final_candidates is not None:
            assert self.candidates is not None
            self.final_candidates.load_state_dict(self.candidates.state_dict())

    def refine(
        self, logits: torch.Tensor, image: torch.Tensor, features: list[torch.Tensor], mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The map after attention ("attention") and after the CRF ("crf"), of those that are there.

        Deviation from dRAM card sec. 5: the field's distances are in voxels of the working grid, not mm. Attention and
        backbone see no mm either, augmentation swaps axes, and sets without spacing are read alike.
        """
        found: dict[str, torch.Tensor] = {}
        if self.attention is not None:
            assert self.guidance is not None
            with torch.autocast(image.device.type, enabled=False):
                guidance = self.guidance(image, [f.float() for f in features[:2]])
                logits = found["attention"] = self.attention(logits, guidance, mask)
        if self.crf is not None:
            found["crf"] = self.crf(logits, image, mask, VOXELS)
        return found


def _with_candidates(
    outputs: torch.Tensor, candidates: SoftCandidates | None, image: torch.Tensor, inside: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    lesion, lungs = outputs[:, :1], outputs[:, 1:]
    if candidates is None:
        return lesion, lungs
    return lesion + candidates(image, (lungs.detach() > 0).float() if inside is None else inside), lungs


def pad_to_factors(image: torch.Tensor) -> torch.Tensor:
    """Pad the far ends with the border's values so that the backbone can halve the grid."""
    return pad_to_multiple(image, FACTORS)


def cut(maps: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Drop what padding added."""
    window: tuple[slice, ...] = tuple(slice(n) for n in grid)
    return maps[(slice(None), slice(None), *window)]
