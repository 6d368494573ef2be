"""Settings of the plain supervised method."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.methods import checks
from medseg.methods.patches import PatchConfig
from medseg.networks.vnet import NORMS

NETWORKS = ("unet", "vnet")
LOSSES = ("dice_ce", "dice")


@dataclass(frozen=True)
class SupervisedConfig(PatchConfig):
    """Defaults of a U-Net that is trained on masks alone."""

    network: str = "unet"  # "vnet" is CAML's branch V, for comparisons at equal architecture
    width: int = 16  # CAML card sec. 3
    norm: str = "batch"  # CAML card sec. 3
    dropout: float = 0.5  # CAML card sec. 3, used by "vnet"
    loss: str = "dice_ce"  # ours: cross-entropy steadies the first iterations; "dice" is CAML's

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choices(self, network=NETWORKS, norm=NORMS, loss=LOSSES)
        checks.counts(self, "width")
        checks.below_one(self, "dropout")
