"""Plain supervised segmentation on masks: the baseline of every benchmark, and all one needs with many labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from monai.losses import DiceCELoss, DiceLoss
from monai.networks.nets import UNet
from torch import nn

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.base import Arm, ArmGroup, Batch, Preset, Sample, Score, StepOutput, Stream, Supervision
from medseg.methods.patches import PatchMethod
from medseg.methods.supervised.config import NETWORKS, SupervisedConfig
from medseg.networks.vnet import VNet


class Supervised(PatchMethod):
    """A U-Net (MONAI) with Dice and cross-entropy."""

    name = "supervised"
    title = "Supervised U-Net"
    supervision = frozenset({Supervision.MASKS})
    config_class = SupervisedConfig
    config: SupervisedConfig
    presets: ClassVar = {
        "cpu": Preset(
            config={"iterations": 400, "patch": (56, 56, 40), "scale": 0, "labelled_batch": 4, "validate_every": 10},
            seeds=2,
            labelled=4,
            held_out=10,
        ),
        "paper": Preset(
            config={"iterations": 15000, "labelled_batch": 4, "width": 32, "workers": 4, "validate_every": 50}, seeds=3
        ),
    }
    arm_groups: ClassVar = {
        "segmentation": ArmGroup(
            arms=(Arm("unet"), Arm("vnet", {"network": "vnet"}), Arm("strong", {"augmentation": "strong"})),
            metric="dice",
        )
    }

    @classmethod
    def adopt(cls, source: Mapping[str, Any]) -> dict[str, Any]:
        """Besides width and norm the network: a V-Net, where the other method has no choice of its own."""
        found, network = super().adopt(source), source.get("network", "vnet")
        return {**found, "network": network} if found and network in NETWORKS else {}

    def build_network(self) -> nn.Module:
        """MONAI's residual U-Net with five levels, or CAML's V-Net."""
        config = self.config
        if config.network == "vnet":
            return VNet(
                in_channels=config.channels,
                out_channels=self.classes,
                spatial_dims=config.dimension,
                width=config.width,
                norm=config.norm,
                dropout=config.dropout,
            )
        return PaddedUNet(
            UNet(
                spatial_dims=config.dimension,
                in_channels=config.channels,
                out_channels=self.classes,
                channels=[config.width * 2**level for level in range(5)],
                strides=[2, 2, 2, 2],
                num_res_units=2,
                norm=self._norm(),
            )
        )

    def _norm(self) -> str | tuple[str, dict[str, int]]:
        """The normalisation in MONAI's words; it normalises the classes, too, which the groups must divide as well."""
        if self.config.norm != "group":
            return self.config.norm
        return "group", {"num_groups": math.gcd(8, self.config.width, self.classes)}

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        """One stream of labelled cases."""
        labelled = tuple(case for case in cases if case.label is not None)
        if not labelled:
            raise MedsegError("supervised training needs at least 1 labelled case, got 0; save a label first")
        return [Stream("labelled", labelled, self.config.labelled_batch)]

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        """Segmentation loss of the labelled patches."""
        labelled = batch["labelled"]
        logits = self.network(labelled["image"])
        options = {"to_onehot_y": True, "softmax": True, "include_background": False, "batch": True}
        criterion = DiceCELoss(**options) if self.config.loss == "dice_ce" else DiceLoss(**options)  # type: ignore[arg-type]
        loss = criterion(logits.float(), labelled["label"].long())
        return StepOutput(loss, {"supervised": loss.detach()})

    def score(self, loaded: Sample) -> Score:
        """Mean entropy inside the predicted foreground; an empty prediction scores highest."""
        prediction = self.predict(loaded)
        assert prediction.mask is not None
        assert prediction.uncertainty is not None
        foreground = prediction.mask.as_tensor() > 0
        if not foreground.any():
            return Score(1.0, "the model finds nothing here", {"entropy": 1.0})
        entropy = float(prediction.uncertainty.as_tensor()[foreground].mean())
        return Score(entropy, f"entropy {entropy:.2f} inside the predicted organ", {"entropy": entropy})


class PaddedUNet(nn.Module):
    """Pads odd sizes up to the multiple of 16 that the U-Net's four halvings need, and crops the result."""

    def __init__(self, net: nn.Module, multiple: int = 16) -> None:
        super().__init__()
        self.net = net
        self.multiple = multiple

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *grid) -> (B, K, *grid)."""
        grid = x.shape[2:]
        missing = [-n % self.multiple for n in grid]
        pads = [side for m in reversed(missing) for side in (0, m)]
        logits: torch.Tensor = self.net(nn.functional.pad(x, pads))
        window: tuple[slice, ...] = (slice(None), slice(None), *(slice(0, n) for n in grid))
        return logits[window]
