"""Settings of the multi-domain method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from medseg.domains import PATTERN, ZSCORE, normalisation_of
from medseg.errors import MedsegError
from medseg.methods.patches import PatchConfig

VIEWS = ("2d", "2.5d", "3d")
NORMS = ("batch", "instance")
NETWORKS = ("unet", "attention", "flexible")
UNKNOWN = ("flag", "refuse")


@dataclass(frozen=True)
class MultiDomainConfig(PatchConfig):
    """Defaults of the multi-domain method. The card leaves the paper's hyper-parameters open: most values are ours."""

    # domains
    domains: dict[str, Any] = field(default_factory=dict)  # registry; filled from the training cases
    added: tuple[str, ...] = ()  # domains that the model in `init` did not know; filled with `domains`
    heirs: dict[str, str] = field(default_factory=dict)  # domain -> its name in `init`; filled with `domains`
    domain_pattern: str = PATTERN  # ours: `vb1_02` belongs to `vb1` where the whole data set is named so
    patient_pattern: str | None = r"^(.+)_(?:frame|phase|time|scan)\d+$"  # ours: phases of one examination
    unknown: str = "flag"  # ours: a guessed domain is served with a warning; "refuse" ends in an error
    least_confidence: float = 0.8  # ours: below it, or far from all training images, a guess counts as unknown

    # input
    normalisation: str = ZSCORE  # card sec. 4: per volume; "window:-160,240@ct" is a window for the domain ct alone
    view: str = "2d"  # card sec. 4: the paper works on slices
    patch: tuple[int, ...] = (256, 256)  # card sec. 4; cut to the images of each domain
    domain_batch: int = 8  # card sec. 7: slices of each domain in a step
    foreground_crops: float = 0.7  # card sec. 7
    augmentation: str = "strong"  # card sec. 7: affine, contrast, bias field, noise; no flips, labels may have a side
    flip_axes: tuple[int, ...] = ()  # ours: axes of the slice that may be flipped, where no label has a side

    # network
    network: str = "unet"  # "attention" and "flexible" (EfficientNet) are the card's, for GPUs
    width: int = 32  # ours: channels of the first level of "unet" and "attention"
    norm: str = "batch"  # card sec. 4; "instance" needs no domain, for the pooled "unet" (card sec. 2: union labels)
    efficientnet: str = "efficientnet-b0"  # card sec. 4: encoder of "flexible"
    pretrained: str | None = None  # weights file of an encoder or of another model; nothing is downloaded
    files: ClassVar[frozenset[str]] = frozenset({"init", "pretrained"})
    domain_layers: bool = True  # own norms and heads per domain; False: the pooled network

    # losses
    loss: str = "dice_ce"  # card sec. 7
    contrast_weight: float = 0.0  # card sec. 5 starts at 0.1; ours: off, see Tuning in benchmarks/multidomain
    contrast_temperature: float = 0.1  # card sec. 5
    contrast_size: int = 128  # card sec. 5: length of a projection
    prior_weight: float = 0.0  # card sec. 6: 0.01-0.1; ours: off, see Tuning in benchmarks/multidomain
    prior_share: float = 0.25  # ours: share of the iterations in which the auto-encoder learns before it is frozen
    prior_score: bool = False  # ours: learn the prior for acquisition scores alone; on in the app
    prior_code: int = 64  # card sec. 6
    prior_width: int = 16  # ours: channels of the auto-encoder
    adversarial_weight: float = 0.0  # card sec. 6: off
    encoder_rate: float = 1.0  # card sec. 7 has 1/3 for a pretrained encoder; ours: 1 without one

    # optimisation
    learning_rate: float = 1e-3  # ours: card sec. 7 has 3e-4 for 10-20 thousand steps
    weight_decay: float = 1e-4  # ours; not on norms and biases (card sec. 7)
    lr_schedule: str = "cosine"  # card sec. 7
    norm_batches: int = 16  # ours: batches per domain for the statistics after training (card sec. 7); 0: as trained

    # a domain that is added to a trained model
    freeze_share: float = 0.3  # ours: share of the iterations in which only the new slot and head learn
    added_rate: float = (
        1 / 3
    )  # ours: of the learning rate, so that old domains are not unlearnt while all are rehearsed

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, known in (("view", VIEWS), ("network", NETWORKS), ("norm", NORMS), ("unknown", UNKNOWN)):
            if getattr(self, key) not in known:
                raise MedsegError(f"{key} = {getattr(self, key)!r} is unknown; choose one of {', '.join(known)}")
        for key in ("prior_share", "freeze_share", "least_confidence"):
            if not 0 <= getattr(self, key) < 1:
                raise MedsegError(f"{key} = {getattr(self, key)} is outside [0, 1)")
        for key in (
            "contrast_weight",
            "prior_weight",
            "adversarial_weight",
            "weight_decay",
            "encoder_rate",
            "added_rate",
        ):
            if not getattr(self, key) >= 0:  # NaN, too, is refused
                raise MedsegError(f"{key} = {getattr(self, key)} must be a number from 0")
        normalisation_of(self.normalisation, "")  # which refuses what it cannot read
        if min(self.domain_batch, self.width, self.contrast_size, self.prior_code, self.prior_width) < 1:
            raise MedsegError("domain_batch, width, contrast_size, prior_code and prior_width must be at least 1")
        if self.network == "attention":
            self._check_attention()
        if self.norm == "instance" and (self.domain_layers or self.network != "unet"):
            raise MedsegError(
                "norm = instance belongs to no domain; set domain_layers=false and network=unet, or norm=batch"
            )
        if self.contrast_weight > 0 and not self.domain_layers:
            raise MedsegError(
                "contrast_weight needs domains that are told apart; set domain_layers=true or the weight to 0"
            )
        if not self.contrast_temperature > 0:
            raise MedsegError(f"contrast_temperature = {self.contrast_temperature} must be above 0; 0.1 is usual")
        if self.network == "flexible" and self.view == "3d":
            raise MedsegError("network = flexible works on slices; set view=2d or network=unet")
        if not set(self.flip_axes) <= {0, 1}:
            raise MedsegError(f"flip_axes = {self.flip_axes} may hold 0 and 1, the axes of a slice")

    def _check_attention(self) -> None:
        if any(length % 16 for length in self.patch):
            raise MedsegError(
                f"patch = {self.patch} must hold multiples of 16 for network=attention, which halves it 4 times"
            )
        if self.encoder_rate != 1:
            raise MedsegError(
                "encoder_rate has no effect on network=attention; set it to 1, or network=unet or flexible"
            )

    @property
    def has_prior(self) -> bool:
        """Whether there is a shape prior, for a loss or for scores alone."""
        return self.prior_score or self.shape_losses

    @property
    def shape_losses(self) -> bool:
        """Whether a loss listens to the shape prior."""
        return self.prior_weight > 0 or self.adversarial_weight > 0

    @property
    def net_axes(self) -> int:
        """Spatial axes of the network."""
        return 3 if self.view == "3d" and self.dimension == 3 else 2
