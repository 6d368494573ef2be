"""Budgets and benchmark arms of the multi-domain method."""

from __future__ import annotations

from medseg.methods.base import Arm, ArmGroup, Preset
from medseg.methods.multidomain.arms import run_individual, run_individual_steps, run_transfer

ON = {"contrast": {"contrast_weight": 0.1}, "prior": {"prior_weight": 0.1}}  # card sec. 5 and 6: where to start
OFF = {"contrast_weight": 0.0, "prior_weight": 0.0}

PRESETS = {
    "cpu": Preset(
        # Ours: images above a million voxels at half resolution, domain by domain; 16 runs of about 200 s on a core.
        config={
            "iterations": 600,
            "scale": 0,
            "patch": (160, 96),
            "width": 16,
            "domain_batch": 4,
            "validate_every": 0,
        },
        seeds=2,
        labelled=9,
        held_out=9,
    ),
    "paper": Preset(
        config={"iterations": 10000, "workers": 4, "validate_every": 20},
        seeds=3,
        held_out=0.3,
    ),
}

ARM_GROUPS = {
    "segmentation": ArmGroup(  # card sec. 3
        arms=(
            Arm("individual", OFF, run=run_individual),
            Arm("individual_steps", OFF, run=run_individual_steps),
            Arm("transfer", OFF, run=run_transfer),
            Arm("shared", {**OFF, "domain_layers": False}),
            Arm("domain_layers", OFF),
            Arm("contrastive", {**OFF, **ON["contrast"]}),
            Arm("prior", {**OFF, **ON["prior"]}),
            Arm("full", {**ON["contrast"], **ON["prior"]}),
            Arm("shared_instance", {**OFF, "domain_layers": False, "norm": "instance"}, in_default=False),
            Arm("individual_3d", {**OFF, "view": "3d", "patch": (96, 96, 32), "domain_batch": 2}, run=run_individual,
                in_default=False),
        ),
        metric="dice",
        tested=("full", "domain_layers"),  # the paper's, and what is on by default
    ),
}  # fmt: skip
