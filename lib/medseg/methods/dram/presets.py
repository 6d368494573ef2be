"""Budgets and benchmark arms of dRAM."""

from __future__ import annotations

from medseg.methods.base import Arm, ArmGroup, Preset
from medseg.methods.dram.cost import pairwise_cost, windowed_cost

PRESETS = {
    "cpu": Preset(
        config={
            "iterations": 500,
            "scale": 1 / 3,
            "width": 8,
            "masks": "extents",
            "learning_rate": 8e-3,  # one for all arms: the chain is indifferent from 3e-3 on, the baselines gain
            "validate_every": 0,
            "epoch_iterations": 40,
        },
        seeds=2,
        held_out=3,
    ),
    "paper": Preset(
        config={
            "iterations": 4000,
            "scale": 1.0,
            "candidates": 7,
            "width": 32,
            "masks": "extents",
            "learning_rate": 1e-3,
            "equivariance_weight": 0.1,
            "validate_every": 0,
            "epoch_iterations": 200,
            "workers": 4,
        },
        seeds=3,
        held_out=3,
    ),
}

_BASELINE = {"attention": False, "crf": False, "final": False}
_SUPERVISED = {  # the same backbone on voxels: the upper bound
    **_BASELINE,
    "masks": "voxels",
    "regression_weight": 0.0,
    "entropy_weight": 0.0,
    "rule": "half",
}

ARM_GROUPS = {
    "segmentation": ArmGroup(  # baselines and ablations of the dRAM card, sec. 2
        arms=(
            Arm("threshold", {**_BASELINE, "head": "threshold"}),
            Arm("otsu", {**_BASELINE, "head": "otsu"}, in_default=False),
            Arm("cam", {**_BASELINE, "head": "cam", "rule": "otsu"}),
            Arm("cam_rank", {**_BASELINE, "head": "cam"}, in_default=False),
            Arm("gradcam", {**_BASELINE, "head": "gradcam", "rule": "otsu"}),
            Arm("regression", {**_BASELINE, "rule": "half"}),
            Arm("regression_rank", _BASELINE),
            Arm("attention", {"crf": False, "final": False}),
            Arm("crf", {"attention": False, "final": False}),
            Arm("attention_crf", {"final": False}),
            Arm("full"),
            Arm("no_candidates", {"candidates": 0}, in_default=False),  # full without the prior that was tuned on masks
            Arm("supervised", _SUPERVISED),
            Arm("released_attention", {"attention_form": "released"}, in_default=False),
        ),
        metric="iou",
        tested="full",
        # issue: 1.48 times CAM's IoU, share of Dice; and the ratio without the prior that masks tuned
        ratios=(("full", "cam"), ("no_candidates", "cam"), ("full", "supervised", "dice")),
    ),
    "extents": ArmGroup(  # how much the exactness of the extents matters
        arms=(Arm("exact"), Arm("score", {"extents": "score"}), Arm("noisy", {"extents": "noisy"})),
        metric="iou",
        tested="exact",
    ),
    "crf_cost": ArmGroup(  # issue: 80^3, 26 neighbours, 5 steps beside all pairs of 16^3; 32^3 to 96^3
        arms=(Arm("windowed", run=windowed_cost), Arm("pairwise", run=pairwise_cost)),
        metric="seconds",
        higher_is_better=False,
        unit="s",
        timed=True,
    ),
}  # fmt: skip
