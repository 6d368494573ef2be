"""The network: shared filters, norms and heads of each domain, projections, shape prior and domain classifier."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.nets import AttentionUnet, BasicUNet, FlexibleUNet
from torch import nn

from medseg.methods.multidomain.classifier import DomainClassifier
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.networks.domain_norm import convert_batch_norm, domain_view, slot_key
from medseg.networks.shape_autoencoder import ShapeAutoencoder
from medseg.networks.trunk import Trunk, pad_to_multiple, without_padding

POOLED = "pooled"
"""Name of the one head of a network without domain-specific layers."""


class MultiDomainNet(nn.Module):
    """S(x; theta, gamma_k) with logits W_k f: filters theta are shared, norms gamma_k and head W_k belong to domain k.

    Source: Boutillon et al., Medical Image Analysis 2022, arXiv 2207.13502; card of the multi-domain method, sec. 4.

    Args:
        backbone: a network that ends before its last layer; batch norms are converted here.
        features: channels that the backbone ends with.
        classes: classes of each head, background included.
        taps: dotted names of the backbone's sub-modules at the three deepest scales, and their channels; one name may
            stand for a module that returns a list of maps, whose last three are taken.
        config: settings.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        classes: Mapping[str, int],
        taps: Mapping[str, tuple[int, ...]],
        config: MultiDomainConfig,
    ) -> None:
        super().__init__()
        names = list(classes)
        axes = config.net_axes
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.domain_layers = config.domain_layers
        self.taps = tuple(taps)
        self.backbone = convert_batch_norm(backbone, names) if config.domain_layers else backbone
        self.heads = nn.ModuleDict({slot_key(name): conv(features, n, 1) for name, n in classes.items()})
        sizes = [size for channels in taps.values() for size in channels]
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, config.contrast_size))
            for size in (sizes if config.contrast_weight > 0 else [])
        )
        self.prior: ShapeAutoencoder | None = None
        if config.has_prior:
            self.prior = ShapeAutoencoder(classes, axes, config.prior_width, config.prior_code)
        self.critic = _critic(axes, config.prior_code) if config.adversarial_weight > 0 else None
        self.classifier = DomainClassifier(config.channels, list(config.domains))
        for name in config.domains:  # mean and spread of what is usual in the domain, see `scores`
            self.register_buffer(f"usual_{slot_key(name)}", torch.tensor([[0.0] * 3, [1.0] * 3]))
        for name in config.added:
            self.register_buffer(f"adopted_{slot_key(name)}", torch.zeros(()))

    def forward(self, image: torch.Tensor, domain: str) -> torch.Tensor:
        """Logits (B, classes of the domain, *grid) of images (B, C, *grid) that all belong to one domain."""
        return self.with_features(image, domain)[0]

    def with_features(self, image: torch.Tensor, domain: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits, and the pooled features (B, size) of the three deepest scales, shallow first."""
        store: dict[str, Any] = {}
        view = domain_view(self.backbone, domain if self.domain_layers else None, self.taps, store)
        logits = self.heads[slot_key(domain if self.domain_layers else POOLED)](view(image))
        maps = [item for name in self.taps for item in _as_list(store[name])]
        return logits, [found.flatten(2).mean(dim=2) for found in maps]

    def fix_shared(self, fixed: bool) -> None:
        """Fix or free what new domains share with old ones: theta and the classifier."""
        for parameter in (*self.shared_parameters(), *self.classifier.parameters()):
            parameter.requires_grad_(not fixed)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Theta: what all domains share in the segmentation network."""
        return [p for name, p in self.backbone.named_parameters() if ".slots." not in name]


def build_backbone(config: MultiDomainConfig) -> tuple[nn.Module, int, dict[str, tuple[int, ...]]]:
    """The chosen network without its last layer, the channels it ends with, and its taps with their channels."""
    axes, width = config.net_axes, config.width
    channels = config.channels * (3 if config.view == "2.5d" else 1)
    network: nn.Module
    if config.network == "flexible":
        flexible = FlexibleUNet(channels, 2, config.efficientnet, pretrained=False, is_pad=True)
        last = next(module for module in flexible.segmentation_head.modules() if isinstance(module, nn.Conv2d))
        setattr(flexible, "segmentation_head", nn.Identity())  # noqa: B010
        return flexible, last.in_channels, {"encoder": _encoder_sizes(flexible, channels)}
    if config.network == "attention":
        levels = [width * 2**level for level in range(5)]
        network = AttentionUnet(axes, channels, width, levels, strides=[2, 2, 2, 2])
        network.model[2] = nn.Identity()
        names = ["model.1.submodule" + ".1.submodule" * depth for depth in range(4)]
        return network, width, {f"{names[1]}.0": (levels[2],), f"{names[2]}.0": (levels[3],), names[3]: (levels[4],)}
    sizes = tuple(width * factor for factor in (1, 1, 2, 4, 8, 1))
    norm = (config.norm, {"affine": True})
    with contextlib.redirect_stdout(io.StringIO()):  # MONAI prints the sizes
        network = BasicUNet(axes, channels, 2, features=sizes, norm=norm, act=("leakyrelu", {"inplace": True}))
    network.final_conv = nn.Identity()
    return network, width, {"down_2": (sizes[2],), "down_3": (sizes[3],), "down_4": (sizes[4],)}


class SliceTrunk(Trunk):
    """The U-Net of `build_backbone` as self-supervised pretraining reads it.

    Args:
        backbone: of `network=unet` in 2D.
        width: its channels at the finest level.
    """

    def __init__(self, backbone: BasicUNet, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.widths = (width, width, 2 * width, 4 * width)
        self.strides = ((1, 1), (2, 2), (4, 4), (8, 8))

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """As `Trunk.maps`."""
        net = self.backbone
        skips = [net.conv_0(pad_to_multiple(image, (16, 16)))]
        for down in (net.down_1, net.down_2, net.down_3, net.down_4):
            skips.append(down(skips[-1]))
        found = [skips.pop()]
        for up in (net.upcat_4, net.upcat_3, net.upcat_2, net.upcat_1):
            found.append(up(found[-1], skips.pop()))
        return without_padding(found[:0:-1], image.shape[2:], self.strides)


def _encoder_sizes(network: FlexibleUNet, channels: int) -> tuple[int, ...]:
    """Channels of the encoder's three deepest maps."""
    with torch.no_grad():
        was = network.training
        maps = network.eval().encoder(torch.zeros(1, channels, 64, 64))
        network.train(was)
    return tuple(int(found.shape[1]) for found in maps[-3:])


def _as_list(found: Any) -> list[torch.Tensor]:
    return list(found)[-3:] if isinstance(found, list | tuple) else [found]


def _critic(axes: int, code: int) -> nn.Module:
    """Discriminator of shape codes (SPAR, arXiv 2101.10173)."""
    conv = nn.Conv2d if axes == 2 else nn.Conv3d
    return nn.Sequential(conv(code, code, 1), nn.LeakyReLU(0.2), conv(code, 1, 1))
