"""Settings of Seg4Reg+."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.errors import MedsegError
from medseg.methods.base import MethodConfig

STRIDE = 32
"""Pixels of the grid per cell of the coarsest level of S."""


@dataclass(frozen=True)
class Seg4RegConfig(MethodConfig):
    """Segmentation S and regression R, the couplings between them as switches."""

    learning_rate: float = 1e-3  # ours: card sec. 6 says 1e-4 for ImageNet weights; this starts from random ones
    weight_decay: float = 1e-4  # Seg4Reg card sec. 6
    grid: tuple[int, ...] = (512, 1024)  # width, height the networks work at; Seg4Reg card sec. 6
    batch: int = 8  # cases with any label per batch; Seg4Reg card sec. 6
    unlabelled_batch: int = 2  # ours: a quarter; only where the triangle can use them
    warmup: float = 0.03  # ours: share of the iterations until the full learning rate
    augment: bool = True  # label-preserving only; Seg4Reg card sec. 6

    # networks
    s_widths: tuple[int, ...] = (32, 64, 96, 128, 160)  # ours: channels of S from fine to coarse
    s_stem: int = 2  # ours: pixels per side that the first layer of S gathers into channels
    r_width: int = 128  # ours: channels of R's last features
    r_stem: int = 2  # ours: R looks at the image at a half of the grid
    tilts: bool = True  # R sees its own estimate of 17 tilts, put through the angle rule; Seg4Reg card sec. 2.4

    # switches: the ablation of the card, sec. 2.11
    segment: bool = True  # S
    regress: bool = True  # R
    attention: bool = True  # image CAM follows the mask CAM
    gate: bool = True  # image CAM enhances S's encoder
    triangle: bool = True  # R(x), R(S(x)) and the geometry of S(x) agree

    # losses
    gap_weight: float = 2.0  # ours: weight of the gap class in the cross-entropy, so that vertebrae stay apart
    angle_weight: float = 1.0  # ours: S and R share no layer but through the couplings
    l1_weight: float = 0.1  # Seg4Reg card sec. 6: SMAPE ratio + 0.1 L1
    tilt_weight: float = 1.0  # ours: mean error of 10 degrees costs 0.11
    attention_weight: float = 0.1  # Seg4Reg card sec. 6
    triangle_weight: float = 1.0  # Seg4Reg card sec. 6: after the ramp
    triangle_start: float = 0.15  # share of the iterations; Seg4Reg card sec. 6: 10-20 of 100-150 epochs
    triangle_ramp: float = 0.3  # ours: share of the iterations from the start to the full weight
    geometry_cases: int = 1  # ours: cases per batch whose mask is measured; it costs as much as a step on a CPU

    # inference
    gap_bias: float = 2.0  # ours: added to the gap's logit, so that a thin gap parts two vertebrae; see the benchmark
    flip: bool = False  # ours: average with the mirrored image
    geometry_share: float = (
        0.7  # ours: weight of geometry against R(S(x)); 1 costs 0.2, 0.5 costs 0.3 SMAPE (tuning cases)
    )
    refine_quads: bool = True  # ours: fitted sides; else 3.7 SMAPE more on masks of S (tuning), 0.2 less on clean ones
    lowest_count: int = 16  # Seg4Reg card sec. 5: geometry is refused outside 16..18
    highest_count: int = 18  # Seg4Reg card sec. 5
    fewest_vertebrae: int = 6  # ours: below, the picture shows no spine and no angle is given at all

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.segment or self.regress):
            raise MedsegError("segment and regress are both off; at least one network must be there")
        if len(self.grid) != 2 or any(n < 2 * STRIDE or n % STRIDE for n in self.grid):
            raise MedsegError(f"grid = {self.grid} must be width and height, multiples of {STRIDE} from {2 * STRIDE}")
        if min(self.batch, self.unlabelled_batch, self.s_stem, self.r_stem) < 1 or min(self.s_widths) < 1:
            raise MedsegError(
                f"batch = {self.batch}, unlabelled_batch = {self.unlabelled_batch}, s_stem = {self.s_stem}, "
                f"r_stem = {self.r_stem} and s_widths = {self.s_widths} must be at least 1"
            )
        if not 1 <= self.lowest_count <= self.highest_count:
            raise MedsegError(f"lowest_count = {self.lowest_count} is outside 1..highest_count = {self.highest_count}")
        if not 0 <= self.triangle_start <= 1 or not 0 <= self.warmup < 1:
            raise MedsegError(f"triangle_start = {self.triangle_start} and warmup = {self.warmup} are shares in [0, 1]")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that the networks work at: `grid` times `scale`, in steps of `STRIDE`."""
        scale = self.scale or 1.0
        x, y = (max(2 * STRIDE, round(n * scale / STRIDE) * STRIDE) for n in self.grid)
        return x, y

    @property
    def couples(self) -> bool:
        """Whether both networks are there."""
        return self.segment and self.regress
