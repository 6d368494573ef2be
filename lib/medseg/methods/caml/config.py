"""Settings of CAML."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.errors import MedsegError
from medseg.losses.segmentation import KINDS
from medseg.methods import checks
from medseg.methods.caml.correlation import CorrelationSettings
from medseg.methods.caml.perturb import KINDS as PERTURBATIONS
from medseg.methods.patches import PatchConfig
from medseg.networks.vnet import NORMS


@dataclass(frozen=True)
class CAMLConfig(PatchConfig):
    """The paper's form, with the parts of it as switches, and later ideas as options that are off."""

    unlabelled_batch: int = 2  # CAML card sec. 5

    # network
    width: int = 16  # CAML card sec. 3
    norm: str = "batch"  # CAML card sec. 3; "instance" and "group" do not mix samples of a small batch
    dropout: float = 0.5  # CAML card sec. 3: channel dropout of both branches

    # switches: the ablation of the card, sec. 1
    mutual: bool = True  # mutual consistency
    cma: bool = True  # cross-sample mutual attention in branch A
    occ: bool = True  # omni-correlation consistency

    # losses
    loss: str = "dice"  # CAML card sec. 5: no cross-entropy; "dice_ce" adds it
    supervised_weight: float = 0.5  # CAML card sec. 5
    mutual_weight: float = 1.0  # CAML card sec. 5
    occ_weight: float = 0.05  # CAML card sec. 5
    ramp: float = 0.2  # share of the iterations until full weight; CAML card sec. 5: 3000 of 15000 at 8 labels
    mutual_temperature: float = 0.1  # CAML card sec. 5
    mutual_detach: bool = False  # CAML card sec. 5: the sharpened target passes its gradient

    # cross-sample attention
    heads: int = 4  # CAML card sec. 3
    attention_dropout: float = 0.5  # CAML card sec. 3
    drop_batch: float = 0.5  # ours: share of steps without attention across samples, so that one image works alone

    # omni-correlation
    occ_temperature: float = 0.1  # CAML card sec. 4
    normalise: bool = True  # ours: without it rows collapse (CAML card sec. 7.4)
    symmetric: bool = True  # ours: both branches learn from the comparison once the target is detached
    detach_target: bool = True  # ours: CAML card sec. 7.4
    occ_dim: int = 32  # CAML card sec. 3
    occ_rows: int = 2048  # ours: voxels compared per class; CAML card sec. 1 suggests 1000 to 4000
    occ_bins: int = 4  # ours: confidence intervals, so that boundaries take part
    occ_memory: int = 256  # CAML card sec. 4
    occ_minimum: int = 32  # ours: so that small organs take part
    bank_capacity: int = 256  # ours: CAML keeps every voxel
    bank_cases: int = 0  # slots; 0: one per labelled case, 64 at most

    # options beyond the paper
    anchor_weight: float = 0.0  # ties correlations of labelled voxels to their class (`OmniCorrelationLoss.anchor`)
    average: float = 0.0  # decay of a running average of V that predicts in its place, e.g. 0.99; 0: off
    perturb: str = "none"  # "intensity": every branch sees its own shift of the unlabelled crops' intensities
    copy_paste: float = 0.0  # weight of bidirectional copy-paste (BCP, arXiv 2305.00673); 0: off
    residual_assistant: bool = False  # branch A with residual levels, as SDCL's second student; more diversity

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choices(self, norm=NORMS, loss=KINDS, perturb=PERTURBATIONS)
        checks.counts(self, "unlabelled_batch", "width", "heads")
        checks.counts(self, "occ_dim", "occ_rows", "occ_bins", "occ_memory", "occ_minimum", "bank_capacity")
        checks.from_zero(self, "supervised_weight", "mutual_weight", "occ_weight", "anchor_weight", "copy_paste")
        checks.from_zero(self, "bank_cases")
        checks.positive(self, "mutual_temperature", "occ_temperature")
        checks.shares(self, "ramp", "drop_batch")
        checks.below_one(self, "dropout", "attention_dropout", "average")
        if (self.width * 8) % self.heads:
            raise MedsegError(f"heads = {self.heads} does not divide the {self.width * 8} channels of level 4")
        if self.occ_bins > self.occ_rows:
            raise MedsegError(f"occ_bins = {self.occ_bins} is outside 1..occ_rows = {self.occ_rows}")

    @property
    def correlation(self) -> CorrelationSettings:
        """Sizes of omni-correlation."""
        return CorrelationSettings(
            dim=self.occ_dim,
            cases=max(self.bank_cases, 1),
            capacity=self.bank_capacity,
            memory=self.occ_memory,
            minimum=self.occ_minimum,
            rows=self.occ_rows,
            bins=self.occ_bins,
            anchors=256 if self.anchor_weight > 0 else 0,  # ours: as many as memory entries per class
        )
