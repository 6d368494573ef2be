"""Budgets and benchmark arms of Seg4Reg+."""

from __future__ import annotations

from medseg.methods.base import Arm, ArmGroup, Preset
from medseg.methods.seg4reg.arms import constant, time_inference

_OFF = {"attention": False, "gate": False, "triangle": False}

PRESETS = {
    "cpu": Preset(  # ours: 0.65 s per iteration of one core; all arms in about 40 minutes on two
        config={
            "iterations": 1400,
            "grid": (256, 512),
            "batch": 4,
            "unlabelled_batch": 1,
            "learning_rate": 2e-3,
            "validate_every": 0,
        },
        seeds=1,
        held_out=0.2,
    ),
    "paper": Preset(  # Seg4Reg card sec. 6: 1024 x 512, batch 8, 100-150 epochs of some 370 cases
        config={"iterations": 7000, "grid": (512, 1024), "batch": 8, "workers": 8, "validate_every": 20},
        seeds=3,
        held_out=0.2,
    ),
}

ARM_GROUPS = {
    "angles": ArmGroup(  # Seg4Reg card sec. 2.11
        arms=(
            Arm("constant", run=constant),
            Arm("mask_route", {"regress": False, **_OFF}),
            Arm("regressor", {"segment": False, **_OFF}),
            Arm("attention", {"gate": False, "triangle": False}),
            Arm("gate", {"attention": False, "triangle": False}),
            Arm("triangle", {"attention": False, "gate": False}),
            Arm("full"),
            Arm("uncoupled", dict(_OFF), in_default=False),
        ),
        metric="smape",
        higher_is_better=False,
        unit="%",
    ),
    "speed": ArmGroup(
        arms=(Arm("inference", run=time_inference),),
        metric="seconds_per_image",
        higher_is_better=False,
        unit="s",
        timed=True,
    ),
}
