"""Settings of dRAM."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medseg.errors import MedsegError
from medseg.methods.base import MethodConfig
from medseg.methods.dram.extents import KINDS, SCORE_TABLES, parse_table
from medseg.networks.local_attention import FORMS
from medseg.transforms.regions import SCHEMES

HEADS = ("dense", "cam", "gradcam", "threshold", "otsu")
RULES = ("half", "rank", "otsu")
CHOICES = {
    "head": HEADS,
    "rule": RULES,
    "final_rule": RULES,
    "extents": KINDS,
    "masks": ("voxels", "extents"),
    "attention_form": FORMS,
    "regions": ("auto", *SCHEMES),
}


@dataclass(frozen=True)
class DRAMConfig(MethodConfig):
    """Defaults follow the dRAM card where it says something. Extents are in per cent, lengths in voxels."""

    # image
    window: tuple[float, ...] | None = None  # None: -1000..200 HU (card sec. 7) for HU, 0..255 for 8 bits (card sec. 2)
    spacing: tuple[float, ...] | None = None  # working voxel size before `scale`; None: each image's own
    scale: float = 0.0  # in the plane; 0: 1, 1/2 or 1/4 until a volume has at most 600 000 voxels
    margin: int = 6  # ours: context around the lungs' box
    batch: int = 1  # ours: whole volumes differ in size; card sec. 7 notes 1 as the released command line's batch
    patch: tuple[int, ...] | None = None  # pads and cuts every sample, needed for batch > 1; None: the lungs' box
    lungs_given: bool = True  # card sec. 2: where a mask tells the lungs, a judged prediction may know them
    # labels
    lesion: str = (
        ""  # name of the label that is disease; "": a known name (infection, lesion, ...), else the last label
    )
    regions: str = "auto"  # names of region ids; a mask with one id is split into left/right thirds (card sec. 2)
    masks: str = "voxels"  # "extents": only region extents are taken from masks, their voxels are never learnt from
    extents: str = "exact"  # how a mask's extents are told, card sec. 2: exact, score, noisy
    noise: float = 0.3  # ours: spread of a reader who is unsure by a third
    score_table: str = "covid"  # card sec. 6
    tolerance: float = 1.0  # card sec. 6: the released band of +- 0.01
    # network
    head: str = "dense"  # the others are the card's baselines
    width: int = 16  # ours: the released 64 costs 462 GMAC per crop
    candidates: int = 3  # ours: the map starts as soft candidates of this window (card sec. 6); 0: without
    attention: bool = True  # abstract of version 1
    attention_form: str = "residual"  # card sec. 4: corrects the released form
    crf: bool = True  # abstract of version 1
    crf_radius: int = 1  # card sec. 5
    crf_steps: int = 5  # card sec. 5
    final: bool = True  # abstract of version 1: a final network on frozen pseudo-labels
    # training
    learning_rate: float = 2e-3  # ours: Adam, decayed to 0 in each stage; released 1e-3
    iterations: int = 2000  # ours: a training round in the app
    refine_from: float = 0.4  # ours: share of stage 1 after which attention and CRF join; before, there is no map
    final_share: float = 0.45  # ours: share of the iterations for the final network
    final_rate: float = 1.0  # ours: learning rate of stage 2, times learning_rate; benchmark arms share one rate
    final_warm: bool = True  # ours: the final network starts from the regression's weights; budgets are short
    regression_weight: float = 2.0  # card sec. 6
    refined_weight: float = 1.0  # card sec. 6
    entropy_weight: float = 0.1  # ours, ramped up: against the constant map (card sec. 8.1)
    equivariance_weight: float = 0.0  # card sec. 6: unused there; costs a second pass
    lung_weight: float = 0.5  # ours: images that come without region masks need lungs
    power: float = 0.5  # card sec. 6: sequel 0.26; ours is milder and used on intervals
    balance: bool = True  # card sec. 1.4: class-weighted once
    band: float = 0.2  # card sec. 1.8: ignore band around the cut, relative to the extent
    least_agreement: float = 0.2  # ours: regions whose map and refined map rank other voxels are left out
    # inference
    rule: str = "rank"  # card sec. 8.1
    final_rule: str = "half"  # ours: the final network learnt hard labels
    follow_extents: bool = True  # ours: the cut obeys extents that a reader typed for the image

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                raise MedsegError(f"{key} = {getattr(self, key)!r} is unknown; choose one of {', '.join(known)}")
        if self.score_table not in SCORE_TABLES:
            parse_table(self.score_table)
        for key in ("refine_from", "final_share", "band", "least_agreement"):
            if not 0 <= getattr(self, key) < 1:
                raise MedsegError(f"{key} = {getattr(self, key)} is outside [0, 1)")
        if min(self.width, self.batch, self.crf_radius, self.crf_steps) < 1 or self.margin < 0:
            raise MedsegError(
                f"width = {self.width}, batch = {self.batch}, crf_radius = {self.crf_radius} and crf_steps = "
                f"{self.crf_steps} must be at least 1, margin = {self.margin} at least 0"
            )
        if self.candidates and self.candidates % 2 == 0:
            raise MedsegError(f"candidates = {self.candidates} must be an odd number of voxels, or 0 for none")
        if self.batch > 1 and self.patch is None:
            raise MedsegError(
                f"batch = {self.batch} needs a patch, because volumes differ in size; set patch=160,160,96"
            )
        if self.window is not None and not (len(self.window) == 2 and self.window[0] < self.window[1]):
            raise MedsegError(f"window = {self.window} must be two ascending numbers, for example -1000,200")
        if not 0 <= self.scale <= 4 or self.width % 4:
            raise MedsegError(f"scale = {self.scale} must lie in [0, 4] and width = {self.width} be a multiple of 4")
        if self.spacing is not None and not (len(self.spacing) == 3 and all(0 < s < math.inf for s in self.spacing)):
            raise MedsegError(f"spacing = {self.spacing} must hold three positive numbers, mm per voxel")

    @property
    def final_start(self) -> int:
        """The iteration at which the final network takes over; `iterations` where there is none."""
        if not self.final or self.head != "dense":
            return self.iterations
        return max(1, round((1 - self.final_share) * self.iterations))
