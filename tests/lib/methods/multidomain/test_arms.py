"""Arms with several networks, and the list of arms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from medseg.benchmark.arms import ArmContext
from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.files import read_json
from medseg.methods.base import Arm
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.method import MultiDomain

LABELS = {"tibia": 1, "talus": 2, "femur": 3, "humerus": 4}
ARMS = {arm.name: arm for arm in MultiDomain.arm_groups["segmentation"].arms}


def context(joints: list[Case], out: Path) -> ArmContext:
    held_out, training = joints[::3], [case for i, case in enumerate(joints) if i % 3]
    config = MultiDomainConfig.from_dict(
        {"patch": (16, 16), "width": 2, "domain_batch": 2, "amp": "off", "iterations": 6, "norm_batches": 1}
    )
    fitted = MultiDomain.fit_config(config, training)
    return ArmContext(MultiDomain, fitted, LABELS, "cpu", 0, 6, out, tuple(training), tuple(held_out))


def run(arm: Arm, joints: list[Case], out: Path) -> dict[str, Any]:
    assert arm.run is not None
    result: dict[str, Any] = arm.run(context(joints, out))
    return result


def test_individual_trains_one_network_per_domain_on_its_own_cases(joints: list[Case], tmp_path: Path) -> None:
    result = run(ARMS["individual"], joints, tmp_path)

    assert sorted(result["cases"]) == ["ankle_00", "knee_00", "shoulder_00"]
    assert all(0 <= metrics["dice"] <= 1 for metrics in result["cases"].values())
    learnt = {name: read_json(tmp_path / name / "metrics.json") for name in ("ankle", "knee", "shoulder")}
    assert [m["iterations"] for m in learnt.values()] == [2, 2, 2]  # 6 steps of 6 slices in all, as the joint arms have
    assert read_json(tmp_path / "knee" / "config.json")["config"]["domain_batch"] == 6
    assert learnt["knee"]["labelled"] == ["knee_01", "knee_02"]
    assert list(read_json(tmp_path / "knee" / "config.json")["config"]["domains"]) == ["knee"]


def test_transfer_spends_half_its_steps_on_another_domain(joints: list[Case], tmp_path: Path) -> None:
    result = run(ARMS["transfer"], joints, tmp_path)

    assert len(result["cases"]) == 3
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["ankle", "ankle_from_knee", "knee", "knee_from_shoulder", "shoulder", "shoulder_from_ankle"]
    for name in names:
        assert read_json(tmp_path / name / "metrics.json")["iterations"] == 1
    assert read_json(tmp_path / "ankle_from_knee" / "metrics.json")["labelled"] == ["knee_01", "knee_02"]
    assert load_file(tmp_path / "ankle" / "model.safetensors")


def test_domain_that_nothing_was_learnt_of_is_no_silent_gap(joints: list[Case], tmp_path: Path) -> None:
    whole = context(joints, tmp_path)
    less = replace(whole, training_cases=tuple(c for c in whole.training_cases if c.dataset != "knee"))
    alone = replace(whole, training_cases=whole.training_cases[:2], held_out_cases=whole.held_out_cases[:1])

    with pytest.raises(MedsegError, match=r"domain knee, of which no labelled case trains; raise --labelled"):
        ARMS["individual"].run(less)
    with pytest.raises(MedsegError, match=r"transfer needs two domains, but all training cases are of ankle"):
        ARMS["transfer"].run(alone)


def test_arms_have_the_names_of_the_card_and_what_is_shipped_is_tested_too() -> None:
    group = MultiDomain.arm_groups["segmentation"]
    default = [arm.name for arm in group.arms if arm.in_default]

    assert default[:4] == ["individual", "individual_steps", "transfer", "shared"]  # what joint networks have to beat
    assert default[4:] == ["domain_layers", "contrastive", "prior", "full"]
    assert (group.metric, group.tested) == ("dice", ("full", "domain_layers"))
    for preset in MultiDomain.presets.values():
        for arm in group.arms:
            MultiDomainConfig.from_dict({**preset.config, **arm.overrides})


@pytest.mark.parametrize("name", ["contrastive", "prior", "full"])
def test_terms_of_an_arm_are_on(name: str) -> None:
    config = MultiDomainConfig.from_dict(dict(ARMS[name].overrides))
    assert (config.contrast_weight > 0) is (name in ("contrastive", "full"))
    assert (config.prior_weight > 0) is (name in ("prior", "full"))
