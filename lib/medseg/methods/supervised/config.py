"""Settings of the plain supervised method."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.errors import MedsegError
from medseg.methods.patches import PatchConfig
from medseg.networks.vnet import NORMS

NETWORKS = ("unet", "vnet")


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
        if self.network not in NETWORKS:
            raise MedsegError(f"network = {self.network!r} is unknown; choose one of {', '.join(NETWORKS)}")
        if self.norm not in NORMS:
            raise MedsegError(f"norm = {self.norm!r} is unknown; choose one of {', '.join(NORMS)}")
        if self.width < 1 or not 0 <= self.dropout <= 1:
            raise MedsegError(f"width = {self.width} must be at least 1 and dropout = {self.dropout} lie in [0, 1]")
        if self.loss not in ("dice_ce", "dice"):
            raise MedsegError(f"loss = {self.loss!r} is unknown; choose dice_ce or dice")
