"""Budgets and benchmark arms of local discrimination."""

from __future__ import annotations

from medseg.methods.base import ArmGroup, Preset
from medseg.methods.local_discrimination.arms import cold_start_arms, segmentation_arms
from medseg.methods.local_discrimination.landmark_arms import landmark_arms
from medseg.methods.local_discrimination.unsupervised_arms import unsupervised_arms

EYES = r"^(.*\d)[lrLR]$"
"""Pictures `12l` and `12r` are one person."""

PRESETS = {
    # ours: what one to three seeds take on two cores in half an hour; see benchmarks/local_discrimination
    "cpu": Preset(
        config={
            "iterations": 800,
            "finetune_iterations": 300,
            "learning_rate": 3e-3,  # ours: a thousand iterations, not a hundred thousand
            "warmup": 0.5,  # ours: places before regions; begun early, regions undo what places have learnt
            "scale": 0,
            "patch": (32, 32, 16),
            "width": 8,
            "embedding": 16,
            "region_weight": 0.5,
            "mirror": 0.0,  # ours: a view and its mirror image are too hard to match in a thousand iterations
            "zoom": (1.0, 2.0),  # ours: more context in a small patch
            "finetune_learning_rate": 0.05,
            "landmark_iterations": 4800,  # ours: a quarter of an hour; see benchmarks/local_discrimination
            "shape_iterations": 1200,  # ours: as long as 800 of the other losses
            "validate_every": 0,
            "patient_pattern": EYES,
        },
        seeds=3,
        held_out=0.25,
    ),
    "paper": Preset(  # card sec. 6, with our network
        config={
            "iterations": 100000,  # card sec. 6: 100 epochs of 1,000
            "finetune_iterations": 10000,  # card sec. 6: 100 epochs of the small sets
            "patch": (112, 112, 80),
            "width": 16,
            "workers": 8,
            "validate_every": 0,
            "patient_pattern": EYES,
        },
        seeds=3,
        held_out=0.25,
    ),
}

ARM_GROUPS = {
    "segmentation": ArmGroup(arms=segmentation_arms(), metric="dice"),
    "landmarks": ArmGroup(arms=landmark_arms(), metric="radial_error_mm", higher_is_better=False, unit="mm"),
    "unsupervised": ArmGroup(arms=unsupervised_arms(), metric="dice"),
    "cold_start": ArmGroup(arms=cold_start_arms(), metric="dice"),
}
