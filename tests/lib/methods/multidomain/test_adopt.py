"""A domain that is added to a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.inference.model_folder import save_model
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.method import MultiDomain
from medseg.networks.domain_norm import domain_slots, slot_key
from medseg.training.initial import load_initial

LABELS = {"tibia": 1, "talus": 2, "femur": 3, "humerus": 4}


@pytest.fixture
def old(make: Any, joints: list[Case], training_set: Any, tmp_path: Path) -> Path:
    """A model of ankle and knee, whose slots differ."""
    torch.manual_seed(0)
    few = joints[:6]
    config = MultiDomain.fit_config(MultiDomainConfig.from_dict({**SMALL, "iterations": 40}), few)
    method = MultiDomain(config, {"tibia": 1, "talus": 2, "femur": 3})
    for scale, name in enumerate(method.registry.names, start=2):
        for slot in domain_slots(method.network.backbone, name):
            torch.nn.init.constant_(slot.weight, scale)
    method.network.eval()
    method.conclude(training_set(method, few))
    save_model(tmp_path / "old", method)
    return tmp_path / "old"


SMALL = {"patch": (32, 32), "width": 4, "domain_batch": 4, "amp": "off", "norm_batches": 2}


def extend(make: Any, old: Path, **settings: object) -> MultiDomain:
    method: MultiDomain = make(init=str(old / "model.safetensors"), **settings)
    load_initial(method.network, old)
    return method


def test_new_slot_starts_from_the_nearest_and_old_slots_are_kept(
    make: Any, joints: list[Case], training_set: Any, old: Path
) -> None:
    method = extend(make, old)
    assert method.registry.names == ("ankle", "knee", "shoulder")
    assert method.config.added == ("shoulder",)

    method.begin_stage(0, training_set(method, joints))

    weights = {n: float(domain_slots(method.network.backbone, n)[0].weight[0]) for n in method.registry.names}
    assert weights["ankle"] == 2
    assert weights["knee"] == 3
    assert weights["shoulder"] in (2, 3)


def test_first_only_the_new_domain_learns_and_then_all(
    make: Any, joints: list[Case], training_set: Any, draw_batch: Any, old: Path
) -> None:
    method = extend(make, old, freeze_share=0.5)
    assert method.stages() == (0, 20)
    whole = training_set(method, joints)

    method.begin_stage(0, whole)
    assert [stream.name for stream in method.streams(joints)] == ["shoulder"]
    method.network.train()
    method.training_step(draw_batch(method, joints), 0).loss.backward()
    assert all(p.grad is None for p in method.network.shared_parameters())
    assert method.network.heads[slot_key("shoulder")].weight.grad is not None

    method.begin_stage(20, whole)
    assert [stream.name for stream in method.streams(joints)] == ["ankle", "knee", "shoulder"]
    assert all(p.requires_grad for p in method.network.shared_parameters())


def test_slot_is_copied_once_so_that_a_resumed_run_keeps_what_it_learnt(
    make: Any, joints: list[Case], training_set: Any, old: Path
) -> None:
    method = extend(make, old)
    whole = training_set(method, joints)
    method.begin_stage(0, whole)
    slot = domain_slots(method.network.backbone, "shoulder")[0]
    torch.nn.init.constant_(slot.weight, 7)

    method.begin_stage(0, whole)

    assert float(slot.weight[0]) == 7


def test_without_old_cases_the_shared_filters_stay_and_so_do_the_old_domains(
    make: Any, joints: list[Case], training_set: Any, old: Path
) -> None:
    method = extend(make, old, cases=joints[6:])
    method.begin_stage(12, training_set(method, joints[6:]))

    assert method.registry.names == ("ankle", "knee", "shoulder")
    assert not any(p.requires_grad for p in method.network.shared_parameters())


def test_labels_of_the_old_domains_must_be_known(joints: list[Case], old: Path) -> None:
    config = MultiDomainConfig.from_dict({**SMALL, "init": str(old)})
    fitted = MultiDomain.fit_config(config, joints[6:])

    with pytest.raises(MedsegError, match="have labels femur, talus, tibia, which this run does not have"):
        MultiDomain(fitted, {"humerus": 1})
